//! Makes the first stage of a disk image: `first-stage DISK AGENT OUT`.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc, time::Instant};

use rootstock_image::{ReadAt, boot, inspect};

struct Disk(File, u64);

impl ReadAt for Disk {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset_bytes)
    }

    fn len_bytes(&self) -> u64 {
        self.1
    }
}

struct Opener(Arc<Disk>);

impl boot::OpenFs for Opener {
    fn open(
        &self,
        partition: &inspect::PartitionReport,
    ) -> Result<Vec<boot::Opened>, boot::OpenFsError> {
        if partition.fs.as_ref().is_none_or(|fs| fs.kind != "ext") {
            return Ok(Vec::new());
        }
        let disk = Arc::clone(&self.0);
        let fs = boot::Ext4Fs::open(disk, partition.start_bytes, partition.len_bytes)?;
        Ok(vec![boot::Opened {
            fs: Box::new(fs),
            kind: "ext4",
            options: String::new(),
        }])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, disk, agent, out] = arguments.as_slice() else {
        return Err("first-stage DISK AGENT OUT".into());
    };
    let file = File::open(disk)?;
    let len = file.metadata()?.len();
    let disk = Arc::new(Disk(file, len));
    let started = Instant::now();
    let partitions = inspect::partitions(&*disk)?;
    let system = boot::find_system(&partitions, &Opener(disk), None)?;
    let kernel = boot::choose_kernel(&system.fs, None)?;
    println!(
        "kernel {} in partition {}",
        kernel.version, system.partition
    );
    println!("found after {:?}", started.elapsed());
    let agent = std::fs::read(agent)?;
    let ingredients = boot::Ingredients {
        agent: &agent,
        site: b"{}",
    };
    let made = boot::assemble(&system.fs, &kernel, system.fs_kind, ingredients)?;
    println!(
        "{} B {:?}, {} B unpacked, {} modules, {} firmware files, left out {:?}, after {:?}",
        made.initrd.len(),
        made.compression,
        made.unpacked_bytes,
        made.module_count,
        made.firmware_count,
        made.firmware_left_out,
        started.elapsed()
    );
    std::fs::write(out, made.initrd)?;
    Ok(())
}
