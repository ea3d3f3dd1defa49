//! Shadow copies: what was deleted since one was made is free by the volume's `$Bitmap`, and
//! the only copy of it. The layout is that of libvshadow's "Volume Shadow Snapshot (VSS)
//! format", section "Volume header".

use super::{
    super::{Refusal, kept},
    le64_at,
};
use crate::read_at::{ReadAt, Window};

/// Where the header lies, in bytes.
const PLACE: u64 = 0x1e00;

/// {3808876b-c176-4e48-b7ae-04046e6cc752}.
const IDENTIFIER: [u8; 16] = [
    0x6b, 0x87, 0x08, 0x38, 0x76, 0xc1, 0x48, 0x4e, 0xb7, 0xae, 0x04, 0x04, 0x6e, 0x6c, 0xc7, 0x52,
];

pub(super) fn check(window: &Window<'_>) -> Result<(), Refusal> {
    let mut header = [0; 128];
    window.read_exact_at(PLACE, &mut header)?;
    if header[..16] != IDENTIFIER {
        return Ok(());
    }
    let catalog = le64_at(&header, 48);
    let (volume, storage) = (&header[64..80], &header[80..96]);
    if catalog == 0 && volume == storage {
        return Ok(());
    }
    kept("it has shadow copies, of which parts lie where it is free")
}
