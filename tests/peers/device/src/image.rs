//! Firmware as this machine runs it: a header with what a real one has compiled in, and any bytes.

use sha2::{Digest, Sha256};

const MAGIC: &[u8] = b"PEER";
/// Where the header's fields begin: flags, the version's length, the version, the size, the rest.
const FLAGS: usize = 4;
const VERSION_SIZE: usize = 5;
const VERSION: usize = 6;
const SIZE: usize = 22;
const END: usize = 26;

/// A firmware that starts.
pub struct Image {
    pub version: Vec<u8>,
    /// It crashes before it says anything.
    pub crashes: bool,
    pub size: usize,
    pub sha256: String,
}

impl Image {
    /// What starts from `flash`; none where it has no firmware's beginning.
    pub fn start(flash: &[u8]) -> Option<Image> {
        let header = flash.get(..END)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let version = header[VERSION..SIZE].get(..header[VERSION_SIZE] as usize)?.to_vec();
        let size = u32::from_le_bytes(header[SIZE..END].try_into().ok()?) as usize;
        // Bytes that the flash has not, are none that anybody published.
        let sha256 = hex(&Sha256::digest(&flash[..size.min(flash.len())]));
        Some(Image {
            version,
            crashes: header[FLAGS] & 1 != 0,
            size,
            sha256,
        })
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}
