//! A NOR flash in memory, whose power can go at any operation.

use std::cell::RefCell;
use std::rc::Rc;

use embedded_storage::nor_flash::{ErrorType, NorFlash, NorFlashError, NorFlashErrorKind, ReadNorFlash};

/// Bytes that are erased together.
pub const PAGE: usize = 1024;
const ERASED: u8 = 0xff;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    NoPower,
    NotAligned,
    OutOfBounds,
}

impl NorFlashError for Fault {
    fn kind(&self) -> NorFlashErrorKind {
        match self {
            Fault::NoPower => NorFlashErrorKind::Other,
            Fault::NotAligned => NorFlashErrorKind::NotAligned,
            Fault::OutOfBounds => NorFlashErrorKind::OutOfBounds,
        }
    }
}

/// What stays when the power goes.
pub struct Chip {
    bytes: Vec<u8>,
    /// Operations until the power goes, in the middle of the last; none: it stays.
    fuse: Option<u32>,
    pub has_power: bool,
}

pub type SharedChip = Rc<RefCell<Chip>>;

impl Chip {
    pub fn new(size: usize) -> SharedChip {
        Rc::new(RefCell::new(Chip {
            bytes: vec![ERASED; size],
            fuse: None,
            has_power: true,
        }))
    }

    pub fn burn_after(&mut self, operations: u32) {
        self.fuse = Some(operations);
    }

    pub fn switch_on(&mut self) {
        self.has_power = true;
    }

    /// Whether the power lasts for one more write or erase.
    fn lasts(&mut self) -> bool {
        match self.fuse {
            Some(0) => {
                self.fuse = None;
                self.has_power = false;
            }
            Some(left) => self.fuse = Some(left - 1),
            None => {}
        }
        self.has_power
    }
}

/// A part of the chip that is written in words of so many bytes.
#[derive(Clone)]
pub struct Region<const WORD: usize> {
    chip: SharedChip,
    start: usize,
    size: usize,
}

impl<const WORD: usize> Region<WORD> {
    pub fn new(chip: &SharedChip, start: usize, size: usize) -> Self {
        Region {
            chip: chip.clone(),
            start,
            size,
        }
    }

    /// The bytes `from` to `to` in the chip.
    fn span(&self, from: usize, to: usize, alignment: usize) -> Result<(usize, usize), Fault> {
        if from > to || to > self.size {
            return Err(Fault::OutOfBounds);
        }
        if !from.is_multiple_of(alignment) || !to.is_multiple_of(alignment) {
            return Err(Fault::NotAligned);
        }
        Ok((self.start + from, self.start + to))
    }
}

impl<const WORD: usize> ErrorType for Region<WORD> {
    type Error = Fault;
}

impl<const WORD: usize> ReadNorFlash for Region<WORD> {
    const READ_SIZE: usize = 1;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), Fault> {
        let (from, to) = self.span(offset as usize, offset as usize + bytes.len(), 1)?;
        let chip = self.chip.borrow();
        if !chip.has_power {
            return Err(Fault::NoPower);
        }
        bytes.copy_from_slice(&chip.bytes[from..to]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.size
    }
}

impl<const WORD: usize> NorFlash for Region<WORD> {
    const WRITE_SIZE: usize = WORD;
    const ERASE_SIZE: usize = PAGE;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), Fault> {
        let (from, to) = self.span(from as usize, to as usize, PAGE)?;
        let mut chip = self.chip.borrow_mut();
        if !chip.has_power {
            return Err(Fault::NoPower);
        }
        let lasts = chip.lasts();
        let to = if lasts { to } else { from + (to - from) / 2 };
        chip.bytes[from..to].fill(ERASED);
        if lasts {
            Ok(())
        } else {
            Err(Fault::NoPower)
        }
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Fault> {
        let (from, _) = self.span(offset as usize, offset as usize + bytes.len(), WORD)?;
        let mut chip = self.chip.borrow_mut();
        if !chip.has_power {
            return Err(Fault::NoPower);
        }
        let lasts = chip.lasts();
        let written = if lasts { bytes.len() } else { bytes.len() / 2 };
        for (cell, byte) in chip.bytes[from..].iter_mut().zip(&bytes[..written]) {
            *cell &= byte; // without an erase bits only go from 1 to 0
        }
        if lasts {
            Ok(())
        } else {
            Err(Fault::NoPower)
        }
    }
}
