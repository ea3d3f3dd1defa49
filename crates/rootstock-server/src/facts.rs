//! What was found on a disk, in the API's words.

use rootstock_api::{FsFacts, ImageFacts, PartitionFacts, VolumeFacts};
use rootstock_image::inspect::{DiskReport, FsReport, PartitionReport, TableKind, VolumeReport};

pub(crate) fn of(disk: &DiskReport) -> ImageFacts {
    ImageFacts {
        table: match disk.table {
            TableKind::None => "none",
            TableKind::Mbr => "mbr",
            TableKind::Gpt => "gpt",
        }
        .to_owned(),
        partitions: disk.partitions.iter().map(partition).collect(),
        kernels: disk.kernels.clone(),
        os: disk.os.clone(),
        dropped_free_bytes: disk.free.iter().map(|range| range.len).sum(),
        boot: None,
    }
}

fn partition(partition: &PartitionReport) -> PartitionFacts {
    PartitionFacts {
        number: partition.number,
        start_bytes: partition.start_bytes,
        len_bytes: partition.len_bytes,
        type_name: partition.type_name.clone(),
        name: partition.name.clone(),
        fs: partition.fs.as_ref().map(fs),
    }
}

fn fs(fs: &FsReport) -> FsFacts {
    FsFacts {
        kind: fs.kind.clone(),
        label: fs.label.clone(),
        uuid: fs.uuid.clone(),
        used_bytes: fs.used_bytes,
        free_bytes: fs.free_bytes,
        kept_whole_because: fs.kept_whole_because.clone(),
        volumes: fs.volumes.iter().map(volume).collect(),
    }
}

fn volume(volume: &VolumeReport) -> VolumeFacts {
    VolumeFacts {
        name: volume.name.clone(),
        len_bytes: volume.len_bytes,
        fs: volume.fs.as_ref().map(fs),
    }
}
