//! The devices: what each does with what embedded-update's updater tells it.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use embedded_storage::nor_flash::{NorFlash, ReadNorFlash};
use embedded_update::{FirmwareDevice, FirmwareStatus};

use crate::bootloader::{active, read_update, Bootloader, Refusal, ACTIVE, CHIP};
use crate::flash::{Chip, SharedChip};
use crate::image::sha256;

/// A board, of which only this stays when its power goes.
pub trait Board {
    type Device: FirmwareDevice<Version = Vec<u8>, Error = Refusal>;

    /// A board that left the factory with a firmware.
    fn new(firmware: &[u8]) -> Self;
    /// What the processor starts from, once the bootloader is done.
    fn boot(&mut self) -> Result<Vec<u8>, Refusal>;
    /// The device that a firmware of this version makes of the board.
    fn device(&mut self, version: &[u8]) -> Self::Device;
    /// Has the power go after so many operations of the flash.
    fn burn_after(&mut self, operations: u32);
    fn has_power(&self) -> bool;
    fn switch_on(&mut self);
}

/// A board without a bootloader, that writes what it is told where it is told, and starts that.
pub struct Plain<const MTU: usize> {
    active: Rc<RefCell<Vec<u8>>>,
}

pub struct PlainDevice<const MTU: usize> {
    active: Rc<RefCell<Vec<u8>>>,
    version: Vec<u8>,
    next: Option<Vec<u8>>,
    buffer: Vec<u8>,
    offset: u32,
}

impl<const MTU: usize> Board for Plain<MTU> {
    type Device = PlainDevice<MTU>;

    fn new(firmware: &[u8]) -> Self {
        Plain {
            active: Rc::new(RefCell::new(firmware.to_vec())),
        }
    }

    fn boot(&mut self) -> Result<Vec<u8>, Refusal> {
        Ok(self.active.borrow().clone())
    }

    fn device(&mut self, version: &[u8]) -> Self::Device {
        let active = self.active.clone();
        PlainDevice {
            active,
            version: version.to_vec(),
            next: None,
            buffer: Vec::new(),
            offset: 0,
        }
    }

    fn burn_after(&mut self, _operations: u32) {}

    fn has_power(&self) -> bool {
        true
    }

    fn switch_on(&mut self) {}
}

impl<const MTU: usize> FirmwareDevice for PlainDevice<MTU> {
    const MTU: usize = MTU;
    type Version = Vec<u8>;
    type Error = Refusal;

    async fn status(&mut self) -> Result<FirmwareStatus<Vec<u8>>, Refusal> {
        Ok(FirmwareStatus {
            current_version: self.version.clone(),
            next_offset: self.offset,
            next_version: self.next.clone(),
        })
    }

    async fn start(&mut self, version: &[u8]) -> Result<(), Refusal> {
        self.next = Some(version.to_vec());
        self.buffer.clear();
        Ok(())
    }

    async fn write(&mut self, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        let (from, to) = (offset as usize, offset as usize + data.len());
        if self.buffer.len() < to {
            self.buffer.resize(to, 0);
        }
        self.buffer[from..to].copy_from_slice(data);
        self.offset = to as u32;
        Ok(())
    }

    async fn update(&mut self, _version: &[u8], _checksum: &[u8]) -> Result<(), Refusal> {
        *self.active.borrow_mut() = self.buffer.clone();
        Ok(())
    }

    async fn synced(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A board with a flash and a bootloader, and one of two firmwares' habits.
pub struct Flashed<D, B, const WORD: usize> {
    chip: SharedChip,
    habits: PhantomData<(D, B)>,
}

/// How a firmware is made on top of the chip.
pub trait Habits: FirmwareDevice<Version = Vec<u8>, Error = Refusal> {
    fn started(chip: &SharedChip, version: &[u8]) -> Self;
}

impl<D: Habits, B: Bootloader<WORD>, const WORD: usize> Board for Flashed<D, B, WORD> {
    type Device = D;

    fn new(firmware: &[u8]) -> Self {
        let chip = Chip::new(CHIP);
        let mut words = firmware.to_vec();
        words.resize(firmware.len().next_multiple_of(WORD), 0);
        active::<WORD>(&chip).write(0, &words).expect("the first firmware fits");
        B::mark_booted(&chip).expect("nothing has gone wrong yet");
        Flashed {
            chip,
            habits: PhantomData,
        }
    }

    fn boot(&mut self) -> Result<Vec<u8>, Refusal> {
        B::prepare_boot(&self.chip)?;
        let mut bytes = vec![0; ACTIVE];
        active::<WORD>(&self.chip)
            .read(0, &mut bytes)
            .map_err(|fault| format!("{fault:?}"))?;
        Ok(bytes)
    }

    fn device(&mut self, version: &[u8]) -> D {
        D::started(&self.chip, version)
    }

    fn burn_after(&mut self, operations: u32) {
        self.chip.borrow_mut().burn_after(operations);
    }

    fn has_power(&self) -> bool {
        self.chip.borrow().has_power
    }

    fn switch_on(&mut self) {
        self.chip.borrow_mut().switch_on();
    }
}

/// A firmware that takes only what follows what it has, and swaps only to what has the checksum.
pub struct Careful<B, const WORD: usize, const MTU: usize> {
    chip: SharedChip,
    version: Vec<u8>,
    next: Option<Vec<u8>>,
    /// Bytes in the flash, whole words.
    written: usize,
    /// Bytes after these that are no whole word yet.
    rest: Vec<u8>,
    bootloader: PhantomData<B>,
}

impl<B: Bootloader<WORD>, const WORD: usize, const MTU: usize> Careful<B, WORD, MTU> {
    fn size(&self) -> usize {
        self.written + self.rest.len()
    }

    /// Writes the whole words that there are.
    fn flush(&mut self) -> Result<(), Refusal> {
        let words = self.rest.len() / WORD * WORD;
        B::write(&self.chip, self.written, &self.rest[..words])?;
        self.written += words;
        self.rest.drain(..words);
        Ok(())
    }
}

impl<B: Bootloader<WORD>, const WORD: usize, const MTU: usize> Habits for Careful<B, WORD, MTU> {
    fn started(chip: &SharedChip, version: &[u8]) -> Self {
        Careful {
            chip: chip.clone(),
            version: version.to_vec(),
            next: None,
            written: 0,
            rest: Vec::new(),
            bootloader: PhantomData,
        }
    }
}

impl<B: Bootloader<WORD>, const WORD: usize, const MTU: usize> FirmwareDevice for Careful<B, WORD, MTU> {
    const MTU: usize = MTU;
    type Version = Vec<u8>;
    type Error = Refusal;

    async fn status(&mut self) -> Result<FirmwareStatus<Vec<u8>>, Refusal> {
        Ok(FirmwareStatus {
            current_version: self.version.clone(),
            next_offset: self.size() as u32,
            next_version: self.next.clone(),
        })
    }

    async fn start(&mut self, version: &[u8]) -> Result<(), Refusal> {
        (self.next, self.written) = (None, 0);
        self.rest.clear();
        B::prepare_update(&self.chip)?;
        self.next = Some(version.to_vec());
        Ok(())
    }

    async fn write(&mut self, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        if self.next.is_none() || offset as usize != self.size() {
            return Err(format!("block at {offset}, but {} bytes are written", self.size()));
        }
        self.rest.extend_from_slice(data);
        self.flush()
    }

    async fn update(&mut self, version: &[u8], checksum: &[u8]) -> Result<(), Refusal> {
        let size = self.size();
        self.rest.resize(self.rest.len().next_multiple_of(WORD), 0);
        self.flush()?;
        let written = read_update::<WORD>(&self.chip, size).map_err(|fault| format!("{fault:?}"))?;
        if self.next.take().as_deref() != Some(version) || sha256(&written) != checksum {
            return Err("what is written has another checksum".into());
        }
        B::mark_updated(&self.chip)
    }

    async fn synced(&mut self) -> Result<(), Refusal> {
        B::mark_booted(&self.chip)
    }
}

/// A firmware with the habits of Drogue Device's FirmwareManager: it never resets the offset that it expects, refuses
/// every block that is elsewhere or no whole words, pads a short one and counts that, and looks at no checksum.
pub struct Manager<B, const WORD: usize, const MTU: usize> {
    chip: SharedChip,
    version: Vec<u8>,
    next: Option<Vec<u8>>,
    expected: u32,
    bootloader: PhantomData<B>,
}

impl<B: Bootloader<WORD>, const WORD: usize, const MTU: usize> Habits for Manager<B, WORD, MTU> {
    fn started(chip: &SharedChip, version: &[u8]) -> Self {
        Manager {
            chip: chip.clone(),
            version: version.to_vec(),
            next: None,
            expected: 0,
            bootloader: PhantomData,
        }
    }
}

impl<B: Bootloader<WORD>, const WORD: usize, const MTU: usize> FirmwareDevice for Manager<B, WORD, MTU> {
    const MTU: usize = MTU;
    type Version = Vec<u8>;
    type Error = Refusal;

    async fn status(&mut self) -> Result<FirmwareStatus<Vec<u8>>, Refusal> {
        Ok(FirmwareStatus {
            current_version: self.version.clone(),
            next_offset: self.expected,
            next_version: self.next.clone(),
        })
    }

    async fn start(&mut self, version: &[u8]) -> Result<(), Refusal> {
        self.next = Some(version.to_vec());
        B::prepare_update(&self.chip)
    }

    async fn write(&mut self, offset: u32, data: &[u8]) -> Result<(), Refusal> {
        if data.len() > WORD && !data.len().is_multiple_of(WORD) {
            return Err(format!("{} bytes are no whole words", data.len()));
        }
        if offset != self.expected {
            return Err(format!("block at {offset}, expected at {}", self.expected));
        }
        let mut words = data.to_vec();
        words.resize(data.len().next_multiple_of(WORD), 0);
        B::write(&self.chip, offset as usize, &words)?;
        self.expected += words.len() as u32;
        Ok(())
    }

    async fn update(&mut self, _version: &[u8], _checksum: &[u8]) -> Result<(), Refusal> {
        B::mark_updated(&self.chip)
    }

    async fn synced(&mut self) -> Result<(), Refusal> {
        B::mark_booted(&self.chip)
    }
}
