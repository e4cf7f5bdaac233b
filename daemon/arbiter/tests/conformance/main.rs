//! The duties of every back end. A back end joins by implementing [`suite::Site`] and one line of `conforms!`.
//! A site that cannot be had on this host is none, and says so.

mod etcd;
mod file;
mod majority;
mod service;
mod suite;

#[path = "../common/cluster.rs"]
mod cluster;
#[path = "../common/history.rs"]
mod history;
#[path = "../common/process.rs"]
mod process;
#[path = "../common/several.rs"]
mod several;

/// Runs a back end through every claim of the suite, each as a test of its own.
macro_rules! conforms {
    ($name:ident: $site:expr) => {
        mod $name {
            use super::*;

            conforms!(@claims $site,
                a_cell_that_was_never_set_is_empty_and_probing_leaves_it_so,
                the_first_of_two_wins_and_the_second_learns_what_holds,
                a_set_that_expects_another_generation_changes_nothing,
                another_cell_of_the_same_generation_is_not_set,
                a_generation_that_does_not_follow_is_not_attempted,
                a_lost_answer_is_read_back_as_ones_own_cell,
                what_is_told_outlives_the_process_that_was_told,
                probing_changes_nothing_and_holds_nobody_up,
                damage_is_an_error_and_never_an_empty_or_older_cell,
                a_long_history_is_told_only_by_its_end,
                concurrent_histories_are_linearizable,
            );
        }
    };
    (@claims $site:expr, $($claim:ident,)*) => {
        $(
            #[test]
            fn $claim() {
                if let Some(site) = $site(stringify!($claim)) {
                    suite::$claim(&site);
                }
            }
        )*
    };
}

conforms!(file_arbiter: file::Shared::new);
conforms!(service_arbiter: service::Served::new);
conforms!(three_services: majority::Members::new);
conforms!(two_of_three_services: majority::Members::two_of_three);
conforms!(three_of_five_services: majority::Members::three_of_five);
conforms!(etcd_arbiter: etcd::EtcdSite::new);
