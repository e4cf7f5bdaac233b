//! The back end "service" with three or five members, each a process of its own.

use crate::several::SeveralServices;
use crate::suite::Site;
use ft_arbiter::Arbiter;
use ft_arbiter::majority::MajorityPace;
use redb::{Database, ReadableTable, TableDefinition};

/// Several services, of which so many are away from the beginning.
pub struct Members {
    several: SeveralServices,
    away: usize,
}

impl Members {
    pub fn new(_claim: &str) -> Option<Self> {
        Some(Self::of(3, 0))
    }

    /// One of them is lost.
    pub fn two_of_three(_claim: &str) -> Option<Self> {
        Some(Self::of(3, 1))
    }

    /// Two of them are lost.
    pub fn three_of_five(_claim: &str) -> Option<Self> {
        Some(Self::of(5, 2))
    }

    fn of(count: u8, away: usize) -> Self {
        let several = SeveralServices::start(count);
        (0..away).for_each(|member| several.kill_member(member));
        Self { several, away }
    }
}

impl Site for Members {
    fn connect(&self) -> Box<dyn Arbiter> {
        Box::new(self.several.connect(MajorityPace::default()))
    }

    /// So that no majority is sound.
    fn damage(&self) {
        let spare = self.several.members.len() - self.several.set.majority();
        for member in self.away..=spare {
            self.several.kill_member(member);
            let database = Database::open(self.several.store(member)).unwrap();
            let txn = database.begin_write().unwrap();
            {
                let mut registers = txn.open_table(TableDefinition::<&str, &[u8]>::new("registers")).unwrap();
                let whole = registers.get("web").unwrap().unwrap().value().to_vec();
                registers.insert("web", &whole[..whole.len() / 2]).unwrap();
            }
            txn.commit().unwrap();
            drop(database);
            self.several.start_member(member);
        }
    }
}
