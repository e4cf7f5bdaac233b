//! A disk for the source of data NoCloud of cloud-init: a vfat with the label CIDATA, with what a cloud image is to
//! know when it boots for the first time. Equal texts make equal disks, so that both hosts can make their own.

use crate::user::give_to_owner_of;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};

/// Bytes of the disk.
const DISK_BYTES: usize = 1 << 20;
/// Bytes of all texts together, at most.
const TEXT_BYTES_MAX: usize = 512 << 10;
/// What cloud-init looks for.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Always the same.
const VOLUME_ID: u32 = 0x4349_4441;

/// What the disk has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// `user-data`
    pub user_data: String,
    /// `meta-data`
    pub meta_data: String,
    /// `network-config`
    pub network_config: Option<String>,
}

/// Whether a file that is there may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
}

/// Why a seed is not made.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// It is there.
    #[error("{}: is there already; --force overwrites it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A value would be something else in YAML.
    #[error("{what} {value:?}: {allowed}")]
    Value {
        /// What it is.
        what: &'static str,
        /// What was given.
        value: String,
        /// What may be.
        allowed: &'static str,
    },
    /// More than the disk has room for.
    #[error("the texts have {0} bytes, at most {TEXT_BYTES_MAX} fit")]
    TooLarge(usize),
}

/// A name that is the same in YAML as it is here.
fn name<'n>(what: &'static str, name: &'n str, more: &str) -> Result<&'n str, SeedError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
    match !name.is_empty()
        && name.len() <= 64
        && name.starts_with(char::is_alphabetic)
        && name.chars().all(is_allowed)
    {
        true => Ok(name),
        false => Err(SeedError::Value {
            what,
            value: name.into(),
            allowed: "must be 1 to 64 letters, digits and '-', and begin with a letter",
        }),
    }
}

/// A user with these public keys, a line each; without a user the image's own settings stay.
pub fn user_data(user: Option<&str>, keys: &str) -> Result<String, SeedError> {
    let Some(user) = user else { return Ok("#cloud-config\n{}\n".into()) };
    let user = name("--user", user, "-_")?;
    let mut text = format!(
        "#cloud-config\nusers:\n  - name: \"{user}\"\n    shell: /bin/bash\n    lock_passwd: true\n    \
         sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n    ssh_authorized_keys:\n"
    );
    let lines = keys.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut count = 0;
    for line in lines {
        if line.contains(['"', '\\']) || line.contains(char::is_control) || !line.contains(' ') {
            return Err(SeedError::Value {
                what: "--ssh-key",
                value: line.into(),
                allowed: "is no line of authorized_keys without options",
            });
        }
        text.push_str(&format!("      - \"{line}\"\n"));
        count += 1;
    }
    match count {
        0 => Err(SeedError::Value { what: "--ssh-key", value: keys.into(), allowed: "has no key" }),
        _ => Ok(text),
    }
}

/// A host name. What the guest tells its first boot by follows from it.
pub fn meta_data(hostname: Option<&str>) -> Result<String, SeedError> {
    let Some(hostname) = hostname else { return Ok("instance-id: \"ftd\"\n".into()) };
    let hostname = name("--hostname", hostname, "-.")?;
    Ok(format!("instance-id: \"ftd-{hostname}\"\nlocal-hostname: \"{hostname}\"\n"))
}

impl Seed {
    /// The disk.
    pub fn disk(&self) -> Result<Vec<u8>, SeedError> {
        let Self { user_data, meta_data, network_config } = self;
        let network = network_config.as_deref();
        let bytes = user_data.len() + meta_data.len() + network.map_or(0, str::len);
        if bytes > TEXT_BYTES_MAX {
            return Err(SeedError::TooLarge(bytes));
        }
        let files = [
            ("user-data", Some(&**user_data)),
            ("meta-data", Some(&**meta_data)),
            ("network-config", network),
        ];
        let in_memory = |source| SeedError::File { path: "the seed's vfat".into(), source };
        let mut disk = Cursor::new(vec![0; DISK_BYTES]);
        let options =
            FormatVolumeOptions::new().fat_type(FatType::Fat12).volume_id(VOLUME_ID).volume_label(LABEL);
        format_volume(&mut disk, options).map_err(in_memory)?;
        {
            let system = FileSystem::new(&mut disk, FsOptions::new()).map_err(in_memory)?;
            for (name, text) in files {
                let Some(text) = text else { continue };
                let mut file = system.root_dir().create_file(name).map_err(in_memory)?;
                file.write_all(text.as_bytes()).map_err(in_memory)?;
            }
        }
        Ok(disk.into_inner())
    }
}

/// Makes the file. It gets its name when it is whole.
pub fn write(seed: &Seed, out: &Path, overwrite: Overwrite) -> Result<(), SeedError> {
    let disk = seed.disk()?;
    let mut aside = out.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let written = write_aside(&disk, Path::new(&aside), out, overwrite);
    // Where it was renamed there is none; where it was not, the error that is told is the first.
    let _ = fs::remove_file(&aside);
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => SeedError::Exists(out.to_owned()),
        _ => SeedError::File { path: out.to_owned(), source },
    })
}

fn write_aside(disk: &[u8], aside: &Path, out: &Path, overwrite: Overwrite) -> io::Result<()> {
    let mut file = File::create(aside)?;
    let directory = out.parent().filter(|directory| !directory.as_os_str().is_empty());
    give_to_owner_of(directory.unwrap_or(Path::new(".")), &file)?;
    file.write_all(disk)?;
    file.sync_all()?;
    match overwrite {
        Overwrite::Refused => fs::hard_link(aside, out),
        Overwrite::Allowed => fs::rename(aside, out),
    }
}

#[cfg(test)]
mod tests;
