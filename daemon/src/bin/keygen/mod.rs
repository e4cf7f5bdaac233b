//! `ftd keygen`: the certificates of a site.

use clap::{Args, Subcommand};
use ft_tls::{BadPartyName, CertificateSite, Party, PartyKind, SiteError, Validity};
use ftd::exit::DaemonExit;
use std::path::{Path, PathBuf};

/// What is made.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct KeygenArgs {
    #[command(subcommand)]
    renew: Option<RenewCmd>,
    /// The nodes, by their names in the configuration; with --add, none need be named
    #[arg(required_unless_present = "add", value_name = "NODE")]
    nodes: Vec<String>,
    /// An arbiter: arbiter.name in the nodes' configuration
    #[arg(long, value_name = "NAME", default_values_t = ["arbiter".to_owned()])]
    arbiter: Vec<String>,
    /// Somebody who may tell daemons and arbiters what to do
    #[arg(long, value_name = "NAME", default_values_t = ["operator".to_owned()])]
    operator: Vec<String>,
    /// Somebody who may look, and change nothing
    #[arg(long, value_name = "NAME")]
    observer: Vec<String>,
    #[command(flatten)]
    place: Place,
    /// Sign with the certificate authority that is in the directory already
    #[arg(long)]
    add: bool,
}

/// Where, and for how long.
#[derive(Args)]
struct Place {
    /// Where the certificate authority is, and a directory for each name
    #[arg(long, value_name = "DIRECTORY", default_value = "ftd-keys")]
    directory: PathBuf,
    /// For how many days the certificates are valid
    #[arg(long, default_value = "730", value_parser = validity, value_name = "DAYS")]
    days: Validity,
}

/// What is done with those that there are.
#[derive(Subcommand)]
enum RenewCmd {
    /// Make new certificates and keys for all that have one in the directory, or for these
    Renew {
        /// Whose
        names: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
}

fn validity(text: &str) -> Result<Validity, String> {
    let days = text.parse().ok().and_then(Validity::days);
    days.ok_or_else(|| "must be a number of days from 1 to 3650".to_owned())
}

/// Why nothing is made.
#[derive(Debug, thiserror::Error)]
enum KeygenError {
    #[error(transparent)]
    Name(#[from] BadPartyName),
    #[error(transparent)]
    CertificateSite(#[from] SiteError),
    #[error(
        "there is nobody to make a certificate for: name a node, or give --operator, --observer or --arbiter"
    )]
    Nobody,
}

/// Carries it out.
pub fn run(args: &KeygenArgs) -> DaemonExit {
    let done = match &args.renew {
        Some(RenewCmd::Renew { names, place }) => renew(names, place),
        None => make(args),
    };
    match done {
        Ok(()) => DaemonExit::Ok,
        Err(e) => {
            eprintln!("ftd: {e}");
            match e {
                KeygenError::CertificateSite(SiteError::Storage { .. } | SiteError::Make(_)) => {
                    DaemonExit::Host
                }
                _ => DaemonExit::Usage,
            }
        }
    }
}

fn make(args: &KeygenArgs) -> Result<(), KeygenError> {
    let Place { directory, days } = &args.place;
    let of = |kind: PartyKind, names: &[String]| -> Result<Vec<Party>, BadPartyName> {
        names.iter().map(|name| Party::new(kind, name)).collect()
    };
    let mut parties = of(PartyKind::Node, &args.nodes)?;
    // What has a default is there already, where more is added to a site.
    let defaults = CertificateSite::parties_in(directory).unwrap_or_default();
    for (kind, names) in [
        (PartyKind::Arbiter, &args.arbiter),
        (PartyKind::Operator, &args.operator),
        (PartyKind::Observer, &args.observer),
    ] {
        parties.extend(of(kind, names)?.into_iter().filter(|party| !(args.add && defaults.contains(party))));
    }
    if parties.is_empty() {
        return Err(KeygenError::Nobody);
    }
    let site = if args.add { CertificateSite::open(directory)? } else { CertificateSite::create(directory)? };
    site.issue(&parties, *days)?;
    tell(directory, &parties);
    if !args.add {
        println!(
            "\n{}/ca.key signs certificates: keep it off the hosts, where nobody else can read it.",
            directory.display()
        );
    }
    Ok(())
}

fn renew(names: &[String], place: &Place) -> Result<(), KeygenError> {
    let renewed = CertificateSite::open(&place.directory)?.renew(names, place.days)?;
    tell(&place.directory, &renewed);
    println!("\nA daemon takes a new certificate up by itself, within a second or two.");
    Ok(())
}

/// What is where, and where it is to go.
fn tell(directory: &Path, parties: &[Party]) {
    for party in parties {
        let files = directory.join(party.name());
        println!(
            "{}/ca.pem identity.pem: {party}, for its machine's {}",
            files.display(),
            ftd::config::TLS_DIRECTORY
        );
    }
}
