//! `ftd seed`: a disk that tells a cloud image who it is.

use clap::Args;
use ftd::exit::DaemonExit;
use ftd::seed::{self, Overwrite, Seed, SeedError};
use std::fs;
use std::path::{Path, PathBuf};

/// Which disk is made.
#[derive(Args)]
pub struct SeedArgs {
    /// The guest's host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A user who may become root without a password, and who logs in with the keys of --ssh-key
    #[arg(long, value_name = "NAME", requires = "ssh_key", conflicts_with = "user_data")]
    user: Option<String>,
    /// A file with public keys, a line each, as in authorized_keys; may be given again
    #[arg(long, value_name = "FILE", requires = "user")]
    ssh_key: Vec<PathBuf>,
    /// cloud-init's user-data, in the place of what --user makes
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// cloud-init's meta-data, in the place of what --hostname makes
    #[arg(long, value_name = "FILE", conflicts_with = "hostname")]
    meta_data: Option<PathBuf>,
    /// cloud-init's network-config; without it the guest asks DHCP
    #[arg(long, value_name = "FILE")]
    network_config: Option<PathBuf>,
    /// Overwrite OUT if it is there
    #[arg(long)]
    force: bool,
    /// The image to make
    out: PathBuf,
}

/// Makes it.
pub fn run(args: &SeedArgs) -> DaemonExit {
    match make(args) {
        Ok(()) => DaemonExit::Ok,
        Err(e) => {
            eprintln!("ftd: {e}");
            match e {
                SeedError::Exists(_) | SeedError::Value { .. } | SeedError::TooLarge(_) => DaemonExit::Usage,
                SeedError::File { .. } => DaemonExit::Host,
            }
        }
    }
}

fn make(args: &SeedArgs) -> Result<(), SeedError> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| SeedError::File { path: path.to_owned(), source })
    };
    let optional = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
    let keys: Vec<String> = args.ssh_key.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let hostname = args.hostname.as_deref();
    let seed = Seed {
        user_data: match optional(&args.user_data)? {
            Some(text) => text,
            None => seed::user_data(args.user.as_deref(), &keys.join("\n"))?,
        },
        meta_data: match optional(&args.meta_data)? {
            Some(text) => text,
            None => seed::meta_data(hostname)?,
        },
        network_config: optional(&args.network_config)?,
    };
    let overwrite = if args.force { Overwrite::Allowed } else { Overwrite::Refused };
    seed::write(&seed, &args.out, overwrite)
}
