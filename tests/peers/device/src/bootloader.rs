//! embassy-boot's bootloaders and updaters over one chip: active partition, update partition, state.

use embedded_storage::nor_flash::{NorFlash, ReadNorFlash};

use crate::flash::{Fault, Region, SharedChip, PAGE};

pub const ACTIVE: usize = 32 * PAGE;
const UPDATE: usize = ACTIVE + PAGE;
const STATE: usize = 4 * PAGE;
pub const CHIP: usize = ACTIVE + UPDATE + STATE;
/// Bytes that bootloaders copy at once.
const CHUNK: usize = 256;

/// What went wrong, in words.
pub type Refusal = String;

fn told(error: impl core::fmt::Debug) -> Refusal {
    format!("{error:?}")
}

pub fn active<const WORD: usize>(chip: &SharedChip) -> Region<WORD> {
    Region::new(chip, 0, ACTIVE)
}

fn update<const WORD: usize>(chip: &SharedChip) -> Region<WORD> {
    Region::new(chip, ACTIVE, UPDATE)
}

fn state<const WORD: usize>(chip: &SharedChip) -> Region<WORD> {
    Region::new(chip, ACTIVE + UPDATE, STATE)
}

/// What runs before a firmware, and what the firmware calls to be replaced.
pub trait Bootloader<const WORD: usize> {
    /// Swaps, goes back or does nothing, as the state says.
    fn prepare_boot(chip: &SharedChip) -> Result<(), Refusal>;
    /// Erases the update partition.
    fn prepare_update(chip: &SharedChip) -> Result<(), Refusal>;
    /// Writes whole words into the update partition.
    fn write(chip: &SharedChip, offset: usize, words: &[u8]) -> Result<(), Refusal>;
    fn mark_updated(chip: &SharedChip) -> Result<(), Refusal>;
    fn mark_booted(chip: &SharedChip) -> Result<(), Refusal>;
}

/// The bytes of the update partition from its beginning.
pub fn read_update<const WORD: usize>(chip: &SharedChip, size: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; size];
    update::<WORD>(chip).read(0, &mut bytes)?;
    Ok(bytes)
}

/// embassy-boot 0.1: writes over the fallback whenever it is told to.
pub struct Boot01;

mod boot01 {
    pub use embassy_boot_01::{BootFlash, BootLoader, FirmwareUpdater, Partition, SingleFlashConfig};

    use super::{ACTIVE, CHIP, UPDATE};

    pub const ACTIVE_PART: Partition = Partition::new(0, ACTIVE);
    pub const UPDATE_PART: Partition = Partition::new(ACTIVE, ACTIVE + UPDATE);
    pub const STATE_PART: Partition = Partition::new(ACTIVE + UPDATE, CHIP);

    pub fn updater() -> FirmwareUpdater {
        FirmwareUpdater::new(UPDATE_PART, STATE_PART)
    }
}

fn whole<const WORD: usize>(chip: &SharedChip) -> Region<WORD> {
    Region::new(chip, 0, CHIP)
}

impl<const WORD: usize> Bootloader<WORD> for Boot01 {
    fn prepare_boot(chip: &SharedChip) -> Result<(), Refusal> {
        let mut flash = boot01::BootFlash::<_, CHUNK>::new(whole::<WORD>(chip));
        let mut config = boot01::SingleFlashConfig::new(&mut flash);
        boot01::BootLoader::new(boot01::ACTIVE_PART, boot01::UPDATE_PART, boot01::STATE_PART)
            .prepare_boot(&mut config, &mut [0; WORD], &mut [0; PAGE])
            .map(drop)
            .map_err(told)
    }

    fn prepare_update(chip: &SharedChip) -> Result<(), Refusal> {
        boot01::updater()
            .prepare_update_blocking(&mut whole::<WORD>(chip))
            .map(drop)
            .map_err(told)
    }

    fn write(chip: &SharedChip, offset: usize, words: &[u8]) -> Result<(), Refusal> {
        // The crate's writer can be had only with an erase; it does the same.
        update::<WORD>(chip).write(offset as u32, words).map_err(told)
    }

    fn mark_updated(chip: &SharedChip) -> Result<(), Refusal> {
        boot01::updater()
            .mark_updated_blocking(&mut whole::<WORD>(chip), &mut [0; WORD])
            .map_err(told)
    }

    fn mark_booted(chip: &SharedChip) -> Result<(), Refusal> {
        boot01::updater()
            .mark_booted_blocking(&mut whole::<WORD>(chip), &mut [0; WORD])
            .map_err(told)
    }
}

/// embassy-boot 0.7: keeps the fallback until the firmware is marked good.
pub struct Boot07;

impl Boot07 {
    fn with_updater<const WORD: usize>(
        chip: &SharedChip,
        act: impl FnOnce(
            &mut embassy_boot_07::BlockingFirmwareUpdater<'_, Region<WORD>, Region<WORD>>,
        ) -> Result<(), embassy_boot_07::FirmwareUpdaterError>,
    ) -> Result<(), Refusal> {
        let config = embassy_boot_07::FirmwareUpdaterConfig {
            dfu: update(chip),
            state: state(chip),
        };
        let mut word = [0; WORD];
        act(&mut embassy_boot_07::BlockingFirmwareUpdater::new(config, &mut word)).map_err(told)
    }
}

impl<const WORD: usize> Bootloader<WORD> for Boot07 {
    fn prepare_boot(chip: &SharedChip) -> Result<(), Refusal> {
        let config = embassy_boot_07::BootLoaderConfig {
            active: active::<WORD>(chip),
            dfu: update::<WORD>(chip),
            state: state::<WORD>(chip),
        };
        embassy_boot_07::BootLoader::new(config)
            .prepare_boot(&mut [0; CHUNK])
            .map(drop)
            .map_err(told)
    }

    fn prepare_update(chip: &SharedChip) -> Result<(), Refusal> {
        Boot07::with_updater::<WORD>(chip, |updater| updater.prepare_update().map(drop))
    }

    fn write(chip: &SharedChip, offset: usize, words: &[u8]) -> Result<(), Refusal> {
        // Into the partition that prepare_update() gave.
        update::<WORD>(chip).write(offset as u32, words).map_err(told)
    }

    fn mark_updated(chip: &SharedChip) -> Result<(), Refusal> {
        Boot07::with_updater::<WORD>(chip, |updater| updater.mark_updated())
    }

    fn mark_booted(chip: &SharedChip) -> Result<(), Refusal> {
        Boot07::with_updater::<WORD>(chip, |updater| updater.mark_booted())
    }
}
