//! What a service has done since it started, in numbers for Prometheus.

use super::message::{Question, Reply};
use crate::majority::{MemberAnswer, MemberAsk};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! figures {
    ($($field:ident $kind:literal $name:literal $help:literal,)*) => {
        /// What a service has done since it started.
        #[derive(Debug, Default)]
        pub struct ServiceFigures {
            $(pub(super) $field: AtomicU64,)*
        }

        impl ServiceFigures {
            /// As Prometheus reads them.
            #[must_use]
            pub fn metrics(&self) -> String {
                let mut text = String::new();
                $(
                    let value = self.$field.load(Ordering::Relaxed);
                    let _ = writeln!(text, concat!("# HELP ", $name, " ", $help));
                    let _ = writeln!(text, concat!("# TYPE ", $name, " ", $kind, "\n", $name, " {}"), value);
                )*
                text
            }
        }
    };
}

figures! {
    cells "gauge" "ftd_arbiter_cells" "VMs that have a cell",
    is_open "gauge" "ftd_arbiter_store_open" "1 while the store can be used",
    connections "gauge" "ftd_arbiter_connections" "Connections that are open",
    turned_away "counter" "ftd_arbiter_turned_away_total" "Connections for which there was no place",
    unproven "counter" "ftd_arbiter_unproven_total" "Connections whose TLS handshake failed",
    reads "counter" "ftd_arbiter_reads_total" "Cells read",
    probes "counter" "ftd_arbiter_probes_total" "Probes, each of which writes",
    wins "counter" "ftd_arbiter_sets_won_total" "Compare-and-sets that have changed a cell",
    losses "counter" "ftd_arbiter_sets_lost_total" "Compare-and-sets that found another generation",
    promises "counter" "ftd_arbiter_promises_total" "Rounds of cells kept with others, promised",
    accepts "counter" "ftd_arbiter_accepts_total" "Rounds of cells kept with others, accepted",
    beaten "counter" "ftd_arbiter_beaten_total" "Rounds of cells kept with others that came too late",
    refusals "counter" "ftd_arbiter_refusals_total" "Questions that were refused",
    doubts "counter" "ftd_arbiter_doubts_total" "Compare-and-sets of which nobody knows whether they are durable",
    commits "counter" "ftd_arbiter_commits_total" "Durable commits of the store",
    commit_failures "counter" "ftd_arbiter_commit_failures_total" "Commits that failed; the store is opened anew",
    commit_us "counter" "ftd_arbiter_commit_us_total" "Microseconds that commits have taken in all",
    commit_us_max "gauge" "ftd_arbiter_commit_us_max" "Microseconds that the slowest commit has taken",
}

impl ServiceFigures {
    pub(super) fn one(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A question and its answer.
    pub(super) fn answered(&self, question: &Question, reply: &Reply) {
        Self::one(match (question, reply) {
            (_, Reply::Refused(_)) => &self.refusals,
            (_, Reply::InDoubt { .. }) => &self.doubts,
            (Question::Set { .. }, Reply::Won) => &self.wins,
            (Question::Set { .. }, _) => &self.losses,
            (Question::Probe { .. }, _) => &self.probes,
            (Question::Read { .. }, _) => &self.reads,
            (Question::Member { .. }, Reply::Member(MemberAnswer::Beaten(_))) => &self.beaten,
            (Question::Member { ask: MemberAsk::Look, .. }, _) => &self.reads,
            (Question::Member { ask: MemberAsk::Prepare(_), .. }, _) => &self.promises,
            (Question::Member { ask: MemberAsk::Accept(_), .. }, _) => &self.accepts,
            (Question::List { .. } | Question::History { .. } | Question::Registers { .. }, _) => return,
        });
    }

    /// A commit has taken so long, and gone well or not.
    pub(super) fn committed(&self, took: Duration, well: bool) {
        let took_us = took.as_micros() as u64;
        Self::one(if well { &self.commits } else { &self.commit_failures });
        self.commit_us.fetch_add(took_us, Ordering::Relaxed);
        self.commit_us_max.fetch_max(took_us, Ordering::Relaxed);
    }
}
