//! What an inspection found, as the API says it.

use rootstock_api::{FsFacts, ImageFacts, PartitionFacts, VolumeFacts};
use rootstock_image::inspect::{DiskReport, FsReport, PartitionReport, TableKind, VolumeReport};

/// The facts of a disk that was inspected.
#[must_use]
pub fn facts(report: &DiskReport) -> ImageFacts {
    let partition = |partition: &PartitionReport| PartitionFacts {
        number: partition.number,
        start_bytes: partition.start_bytes,
        len_bytes: partition.len_bytes,
        type_name: partition.type_name.clone(),
        name: partition.name.clone(),
        fs: partition.fs.as_ref().map(fs),
    };
    ImageFacts {
        table: match report.table {
            TableKind::None => "none",
            TableKind::Mbr => "mbr",
            TableKind::Gpt => "gpt",
        }
        .to_owned(),
        partitions: report.partitions.iter().map(partition).collect(),
        kernels: report.kernels.clone(),
        os: report.os.clone(),
        dropped_free_bytes: report.free.total_bytes(),
        boot: None,
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
