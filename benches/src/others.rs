//! Crates that do the same, but are no part of what everybody has beside tokio.

use crate::{
    apalis::Storage,
    contenders::{
        Work,
        names::{APALIS, ORCHESTRA, RELAXED},
    },
    orchestra::{Pool, Relaxed},
    timing::Entrant,
};

/// All of them that know the limit.
pub fn others<W: Work>(limit: Option<usize>, work: W) -> Vec<Entrant> {
    let mut others = vec![Entrant::new(APALIS, Storage::new(limit, work))];
    if let Some(limit) = limit {
        others.push(Entrant::new(ORCHESTRA, Pool::new(limit, work)));
        others.push(Entrant::new(RELAXED, Relaxed::new(limit, work)));
    }
    others
}
