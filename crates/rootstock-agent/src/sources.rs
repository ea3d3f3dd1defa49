//! Where a version's chunks come from, and where they are kept: the site's servers,
//! other machines, and the machine's own disk.

use std::sync::Arc;
use std::time::Duration;

use rootstock_api::boot::{NextVersion, NodeControl, NodeMode};
use rootstock_image::manifest::Manifest;

use crate::console;
use crate::control::Start;
use crate::disk::find::Found;
use crate::local::keep::Common;
use crate::order::Site;
use crate::others::Boots;
use crate::remote::{Remote, ServiceFetch};
use crate::server::{ToldOf, memory_bytes};
use crate::service::Service;
use crate::stats::Stats;
use crate::swarm::membership::Membership;
use crate::swarm::{self, Swarm, SwarmFetch};
use crate::tiers::Tiers;
use crate::tiers::attach::{self, Attached, Wanted};
use crate::tiers::next::{ServiceUpgrades, Upgrade};
use crate::tiers::remember::Version;

/// All of them.
pub(crate) struct Sources {
    /// In their order.
    pub(crate) tiers: Arc<Tiers<SwarmFetch>>,
    /// Other machines.
    pub(crate) swarm: Arc<Swarm>,
    /// The machine's disk, and how it is filled.
    pub(crate) attached: Arc<Attached<SwarmFetch>>,
    /// Hears of what changes.
    pub(crate) told: ToldOf,
}

/// The system that this runs in.
pub(crate) struct Here {
    /// Its `/run`, from here.
    pub(crate) run: &'static str,
    /// A disk that somebody named.
    pub(crate) disk: Option<Found>,
}

impl Here {
    /// An image's, whose `/run` is this process's directory.
    pub(crate) const IMAGE: Self = Self {
        run: "",
        disk: None,
    };

    /// A machine's own.
    pub(crate) const OWN: Self = Self {
        run: "/run",
        disk: None,
    };
}

impl Sources {
    /// Opens what an order names, on this system.
    ///
    /// # Errors
    /// Why they cannot be, in words.
    pub(crate) fn start(
        start: &Start,
        service: &Service,
        manifest: &Manifest,
        stats: &Arc<Stats>,
        here: Here,
    ) -> Result<Self, String> {
        let order = &start.order;
        // A local order says nothing of the swarm: it may be older than what was kept.
        let kept = start.membership.as_ref().map(Membership::order);
        let taking_part = order.swarm.clone().or(kept);
        let swarm = Swarm::new(taking_part, order.mode == NodeMode::Hold);
        let fetch = SwarmFetch {
            swarm: Arc::clone(&swarm),
            service: ServiceFetch {
                service: service.clone(),
                urls: order.chunk_urls.clone(),
            },
        };
        let tiers = Tiers::new(Remote::new(fetch, Arc::clone(stats)), Arc::clone(stats));
        let found = Arc::clone(&swarm);
        let mut wanted = wanted(
            start,
            service,
            Box::new(move |disk, device| found.attach(disk, device)),
        )?;
        wanted.own = here.disk;
        let attached = Attached::start(&tiers, wanted)
            .map_err(|error| format!("the machine's disks cannot be looked at: {error}"))?;
        let (steered, among) = (Arc::clone(&attached), Arc::clone(&swarm));
        let told = Box::new(move |control: NodeControl| {
            among.set_order(control.swarm.clone());
            steered.set_control(control);
        });
        let busy = Arc::clone(&tiers);
        let joined = swarm.start(swarm::Site {
            service: service.clone(),
            urls: start.urls.clone(),
            file: start.site.clone(),
            kept: start.membership.clone(),
            memory_bytes: memory_bytes("MemTotal:"),
            run: here.run.into(),
            is_busy: Box::new(move || {
                busy.is_booting() || busy.foreground().is_busy(Duration::ZERO)
            }),
        });
        joined.map_err(|error| format!("the swarm cannot be joined: {error}"))?;
        let learnt = swarm.learn(manifest.clone(), order.manifest, Arc::clone(&tiers));
        learnt.map_err(|error| format!("the swarm cannot be told of the version: {error}"))?;
        let boots = Boots {
            service: service.clone(),
            urls: start.urls.clone(),
            plain_urls: order.chunk_urls.clone(),
            site: Site::new(start.site.clone()).map_err(|error| console::chain(&error))?,
            runs: NextVersion {
                image: order.image.clone(),
                version: order.version,
                manifest: order.manifest,
            },
            swarm: Arc::clone(&swarm),
            memory_bytes: memory_bytes("MemTotal:"),
        };
        boots
            .start()
            .map_err(|error| format!("others cannot be booted: {error}"))?;
        Ok(Self {
            tiers,
            swarm,
            attached,
            told,
        })
    }
}

fn wanted(start: &Start, service: &Service, found: attach::OnFound) -> Result<Wanted, String> {
    let order = &start.order;
    let site = || Site::new(start.site.clone()).map_err(|error| console::chain(&error));
    let patience = match (order.mode, service.has_session()) {
        // The disks of a machine that runs are there.
        (NodeMode::Hold, _) => Duration::ZERO,
        (_, true) => attach::SOON,
        // Nobody else has what the disk has, while no server knows of this boot.
        (_, false) => attach::LATE,
    };
    Ok(Wanted {
        choice: order.cache.clone(),
        own: None,
        patience,
        bytes_max: order.cache_disk_bytes_max,
        version: Version {
            image: order.image.clone(),
            version: order.version,
            manifest: start.manifest.clone(),
        },
        fill: order.fill.clone(),
        upgrade: Upgrade {
            upgrades: ServiceUpgrades {
                service: service.clone(),
                urls: order.chunk_urls.clone(),
            },
            site: site()?,
            runs: format!("{}:{}", order.image, order.version),
        },
        common: Common {
            service: service.clone(),
            urls: start.urls.clone(),
            site: site()?,
            identity: start.identity.clone(),
            words: start.words.clone(),
        },
        found,
    })
}
