//! Hostile drivers against the devices of a real machine: whatever a guest's driver does with its registers and rings
//! stops its device at most, until the driver resets it.
//!
//! A small guest (`guest`) does the accesses that the test wants, on either engine and either bus; the test writes the
//! rings into the guest's memory. Each case is a row of a table (`cases`).

mod block;
mod cases;
mod chains;
mod driver;
mod guest;
mod net;
mod pci;
mod registers;
mod rings;
mod rng;
mod setup;
mod vm;

use cases::Case;
use std::collections::BTreeSet;

/// What the cases are about.
const SUBJECTS: &[(&str, &[Case])] = &[
    ("chains", chains::CASES),
    ("rings", rings::CASES),
    ("setup", setup::CASES),
    ("net", net::CASES),
    ("block", block::CASES),
    ("rng", rng::CASES),
    ("registers", registers::CASES),
    ("pci", pci::CASES),
];

/// Has a table of them.
const THREATS: &str = include_str!("../../../docs/threat-model.md");

#[test]
fn each_case_has_a_name_of_its_own_and_the_threat_model_counts_them() {
    let mut names = BTreeSet::new();
    for (subject, cases) in SUBJECTS {
        let row = format!("| `{subject}` | {} |", cases.len());
        assert!(THREATS.contains(&row), "no row begins with {row}");
        for case in *cases {
            assert!(names.insert(case.name), "{subject}: {}", case.name);
        }
    }
}

#[test]
fn hostile_chains_stop_their_device_at_most() {
    cases::run("chains", chains::CASES);
}

#[test]
fn hostile_rings_stop_their_device_at_most() {
    cases::run("rings", rings::CASES);
}

#[test]
fn a_hostile_set_up_stops_its_device_at_most() {
    cases::run("setup", setup::CASES);
}

#[test]
fn a_hostile_driver_of_the_card_stops_it_at_most() {
    cases::run("net", net::CASES);
}

#[test]
fn a_hostile_driver_of_the_disk_stops_it_at_most() {
    cases::run("block", block::CASES);
}

#[test]
fn a_hostile_driver_of_the_random_numbers_stops_them_at_most() {
    cases::run("rng", rng::CASES);
}

#[test]
fn hostile_accesses_to_registers_stop_their_device_at_most() {
    cases::run("registers", registers::CASES);
}

#[test]
fn a_hostile_driver_on_pci_stops_its_device_at_most() {
    cases::run("pci", pci::CASES);
}
