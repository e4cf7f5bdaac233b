//! The back end "service" with three members, each a process of its own.

use crate::suite::Site;
use crate::three::ThreeServices;
use ft_arbiter::Arbiter;
use ft_arbiter::majority::MajorityPace;
use redb::{Database, ReadableTable, TableDefinition};

/// Three services, of which so many are away from the beginning.
pub struct Members {
    three: ThreeServices,
    away: usize,
}

impl Members {
    pub fn new(_claim: &str) -> Option<Self> {
        Some(Self { three: ThreeServices::start(), away: 0 })
    }

    /// One of them is lost.
    pub fn two_of_three(claim: &str) -> Option<Self> {
        let members = Self::new(claim)?;
        members.three.kill_member(0);
        Some(Self { away: 1, ..members })
    }
}

impl Site for Members {
    fn connect(&self) -> Box<dyn Arbiter> {
        Box::new(self.three.connect(MajorityPace::default()))
    }

    /// So that no majority is sound.
    fn damage(&self) {
        for member in self.away..2 {
            self.three.kill_member(member);
            let database = Database::open(self.three.store(member)).unwrap();
            let txn = database.begin_write().unwrap();
            {
                let mut registers = txn.open_table(TableDefinition::<&str, &[u8]>::new("registers")).unwrap();
                let whole = registers.get("web").unwrap().unwrap().value().to_vec();
                registers.insert("web", &whole[..whole.len() / 2]).unwrap();
            }
            txn.commit().unwrap();
            drop(database);
            self.three.start_member(member);
        }
    }
}
