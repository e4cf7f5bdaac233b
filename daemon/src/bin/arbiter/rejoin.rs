//! `ftd arbiter --rejoin`: the store of a member that has lost its own.

use ft_arbiter::majority::{MemberSet, Register};
use ft_arbiter::service::{CellStore, PROMISE_KEPT, ServiceDesk, ServicePace, ServicePlace};
use ft_tls::{CredentialFiles, Credentials, PartyKind, Protection};
use ftd::config::ServedConfig;
use ftd::exit::DaemonExit;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

/// Why there is no new store.
#[derive(Debug, thiserror::Error)]
enum RejoinError {
    #[error("--rejoin is for a member of several: the configuration has no members")]
    Alone,
    #[error(
        "{0}: it is there already; move it away first, where it is damaged or older than what it has told"
    )]
    Exists(std::path::PathBuf),
    #[error("cannot listen on {0}: {1}; another `ftd arbiter` must not run here meanwhile")]
    Runs(SocketAddr, std::io::Error),
    #[error(
        "give one --arbiter-name for all members, or one for each of the {0}, in the order of their addresses"
    )]
    Names(usize),
    #[error("{0}")]
    Keys(String),
    #[error(
        "{have} other members have answered, {needed} must, so that a majority answers without this one{why}"
    )]
    TooFew { have: usize, needed: usize, why: String },
    #[error(transparent)]
    Store(#[from] ft_arbiter::service::CellStoreError),
}

/// Carries it out.
pub fn run(config: &ServedConfig, keys: Option<&Path>, names: &[String]) -> DaemonExit {
    match rejoin(config, keys, names) {
        Ok(done) => {
            println!("{}: {done}", config.store.display());
            DaemonExit::Ok
        }
        Err(e) => {
            eprintln!("ftd: {e}");
            match e {
                RejoinError::Store(e) => super::exit_of(&e),
                RejoinError::Runs(..) => DaemonExit::InUse,
                RejoinError::TooFew { .. } => DaemonExit::Arbiter,
                _ => DaemonExit::Usage,
            }
        }
    }
}

fn rejoin(config: &ServedConfig, keys: Option<&Path>, names: &[String]) -> Result<String, RejoinError> {
    let set = config.set().ok_or(RejoinError::Alone)?;
    if config.store.exists() {
        return Err(RejoinError::Exists(config.store.clone()));
    }
    let members = set.addresses();
    if names.len() != 1 && names.len() != members.len() {
        return Err(RejoinError::Names(members.len()));
    }
    let protection = match keys {
        None => Protection::None,
        Some(directory) => {
            let kinds = [PartyKind::Operator, PartyKind::Observer];
            let credentials = Credentials::load(CredentialFiles::within(directory), &kinds, None);
            Protection::Tls(credentials.map_err(|e| RejoinError::Keys(e.to_string()))?.into())
        }
    };
    // Nobody answers with the lost store's word from now on.
    let _kept = TcpListener::bind(config.listen).map_err(|e| RejoinError::Runs(config.listen, e))?;
    // A node proposes with a promise for seconds, and a member accepts for PROMISE_KEPT after its own.
    let wait = 2 * PROMISE_KEPT;
    eprintln!(
        "ftd: waiting for {} s, until nothing is under way that rests on the lost store",
        wait.as_secs()
    );
    std::thread::sleep(wait);
    let place = |nth: usize| ServicePlace {
        address: members[nth],
        name: names.get(nth).unwrap_or(&names[0]).clone(),
        protection: protection.clone(),
    };
    // This one listens, and says nothing.
    let (mut have, mut why) = (0, String::new());
    let mut known: BTreeMap<String, Register> = BTreeMap::new();
    for (nth, member) in members.iter().enumerate() {
        match told(place(nth), &set) {
            Ok(registers) => {
                have += 1;
                for (vm, register) in registers {
                    let before = known.remove(&vm).unwrap_or_default();
                    known.insert(vm, before.merged(register));
                }
            }
            Err(e) => why += &format!("; {member}: {e}"),
        }
    }
    if have < set.majority() {
        return Err(RejoinError::TooFew { have, needed: set.majority(), why });
    }
    CellStore::create_member(&config.store, &set, &known)?;
    Ok(format!("a store of a member of {set}, with {} cells, of what {have} others have", known.len()))
}

/// All that a member has promised and accepted.
fn told(place: ServicePlace, set: &MemberSet) -> Result<Vec<(String, Register)>, String> {
    let mut desk = ServiceDesk::new(place, ServicePace::default());
    let (theirs, registers) =
        desk.registers().map_err(|e| e.to_string())?.ok_or("it keeps its cells alone")?;
    if theirs != *set {
        return Err(format!("it is a member of {theirs}"));
    }
    let sound = registers.into_iter().map(|listed| match listed.register {
        Some(register) => Ok((listed.vm, register)),
        None => {
            Err(format!("its record of '{}' is damaged: {}", listed.vm, listed.damage.unwrap_or_default()))
        }
    });
    sound.collect()
}
