//! Executes what a grub.cfg says, as far as it decides what is booted.

use super::environment;
use super::parse::{Block, Command, parse};
use super::words::Piece;
use crate::entry::text_of;
use crate::table::Scheme;
use crate::volume::{Files, Volume};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Commands that are executed at most.
const STEPS_MAX: usize = 100_000;
/// Bytes that a command has to be parsed from, or is made of, and that count as another one.
const BYTES_PER_STEP: usize = 256;
/// Functions, files and blocks within one another.
const DEPTH_MAX: u32 = 64;
/// Bytes of a command's words, and of a variable.
const WORDS_BYTES_MAX: usize = 64 << 10;
const ITEMS_MAX: usize = 1000;
const VARIABLES_MAX: usize = 1000;

/// An entry of a menu.
#[derive(Clone)]
pub(super) struct MenuItem {
    pub(super) title: String,
    pub(super) id: String,
    pub(super) is_menu: bool,
    body: Block,
    /// What follows the title and the options.
    arguments: Vec<String>,
}

/// What `linux` and `initrd` have said.
#[derive(Clone, Debug)]
pub(super) struct Linux {
    pub(super) volume: usize,
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) cmdline: String,
}

/// What a configuration is executed on: the disk's volumes, as GRUB's devices.
pub(super) struct Machine<'v> {
    volumes: &'v [Volume],
    variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Block>,
    menu: Vec<MenuItem>,
    linux: Option<Linux>,
    steps: usize,
    depth: u32,
}

/// Whether a command succeeded; or why nothing further is executed.
type Done = Result<bool, &'static str>;

impl<'v> Machine<'v> {
    /// Begins with the configuration on this volume.
    pub(super) fn new(volumes: &'v [Volume], index: usize, prefix: &str) -> Self {
        let device = device(&volumes[index]);
        let prefix = format!("({device}){prefix}");
        let known = [
            ("root", &*device),
            ("prefix", &prefix),
            ("config_directory", &prefix),
            ("grub_platform", "efi"),
            ("grub_cpu", "x86_64"),
            ("feature_menuentry_id", "y"),
            ("feature_timeout_style", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("feature_platform_search_hint", "y"),
        ];
        let variables = known.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let (functions, menu) = (BTreeMap::new(), Vec::new());
        Self { volumes, variables, functions, menu, linux: None, steps: 0, depth: 0 }
    }

    pub(super) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }

    pub(super) fn take_menu(&mut self) -> Vec<MenuItem> {
        std::mem::take(&mut self.menu)
    }

    pub(super) fn take_linux(&mut self) -> Option<Linux> {
        self.linux.take()
    }

    pub(super) fn run_item(&mut self, item: &MenuItem) -> Done {
        self.set("chosen", &item.id);
        self.with_arguments(&item.arguments, &item.body)
    }

    pub(super) fn run(&mut self, commands: &[Command]) -> Done {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("it is executed too deeply");
        }
        let mut succeeded = true;
        for command in commands {
            succeeded = self.command(command)?;
            self.set("?", if succeeded { "0" } else { "1" });
        }
        self.depth -= 1;
        Ok(succeeded)
    }

    /// Counts work, so that all of it together is bounded.
    fn spend(&mut self, steps: usize) -> Result<(), &'static str> {
        self.steps = self.steps.saturating_add(steps);
        if self.steps > STEPS_MAX { Err("it does not end") } else { Ok(()) }
    }

    fn command(&mut self, command: &Command) -> Done {
        self.spend(1)?;
        match command {
            Command::Simple(words) => {
                let words = self.expand(words)?;
                self.simple(&words)
            }
            Command::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.run(condition)? {
                        return self.run(body);
                    }
                }
                self.run(otherwise)
            }
            Command::While(condition, wanted, body) => {
                while self.run(condition)? == *wanted {
                    self.run(body)?;
                    self.spend(1)?;
                }
                Ok(true)
            }
            Command::For(name, words, body) => {
                for word in self.expand(words)? {
                    self.set(name, &word);
                    self.run(body)?;
                }
                Ok(true)
            }
            Command::Function(name, body) => {
                if self.functions.len() < VARIABLES_MAX {
                    self.functions.insert(name.clone(), Rc::clone(body));
                }
                Ok(true)
            }
            Command::Entry { words, is_menu, body } => {
                let words = self.expand(words)?;
                self.entry(&words, *is_menu, body);
                Ok(true)
            }
        }
    }

    fn entry(&mut self, words: &[String], is_menu: bool, body: &Block) {
        let mut words = words.iter();
        let title = words.next().cloned().unwrap_or_default();
        let (mut id, mut arguments) = (title.clone(), vec![title.clone()]);
        while let Some(word) = words.next() {
            match &**word {
                "--id" => id = words.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                word => match word.strip_prefix("--id=") {
                    Some(value) => id = value.into(),
                    None if word.starts_with("--") => {}
                    None => arguments.push(word.into()),
                },
            }
        }
        if self.menu.len() < ITEMS_MAX {
            self.menu.push(MenuItem { title, id, is_menu, body: Rc::clone(body), arguments });
        }
    }

    /// Puts variables in. One that is not quoted is as many words as its value has.
    fn expand(&mut self, words: &[Vec<Piece>]) -> Result<Vec<String>, &'static str> {
        let mut expanded = Vec::new();
        let mut bytes = 0;
        for pieces in words {
            let is_quoted = pieces.is_empty();
            let mut word = is_quoted.then(String::new);
            for piece in pieces {
                let (value, splits) = match piece {
                    Piece::Text(text) => (&**text, false),
                    Piece::Variable { name, quoted } => (self.variable(name), !quoted),
                };
                bytes += value.len();
                if bytes > WORDS_BYTES_MAX {
                    return Err("a command is too long");
                }
                match splits {
                    false => word.get_or_insert_default().push_str(value),
                    true => {
                        for (index, part) in value.split_whitespace().enumerate() {
                            if index > 0 {
                                expanded.extend(word.take());
                            }
                            word.get_or_insert_default().push_str(part);
                        }
                    }
                }
            }
            expanded.extend(word);
        }
        self.spend(bytes / BYTES_PER_STEP)?;
        Ok(expanded)
    }

    fn set(&mut self, name: &str, value: &str) {
        if self.variables.len() < VARIABLES_MAX || self.variables.contains_key(name) {
            self.variables.insert(name.into(), value.into());
        }
    }

    fn with_arguments(&mut self, arguments: &[String], body: &Block) -> Done {
        for (index, argument) in arguments.iter().enumerate() {
            // $1 of an entry is its title, of a function what follows its name.
            self.set(&format!("{}", index + 1), argument);
        }
        self.run(body)
    }

    fn simple(&mut self, words: &[String]) -> Done {
        // Each `!` turns over what follows it.
        let negations = words.iter().take_while(|word| *word == "!").count();
        let succeeded = self.plain(&words[negations..])?;
        Ok(succeeded ^ !negations.is_multiple_of(2))
    }

    /// A command without a `!` before it.
    fn plain(&mut self, words: &[String]) -> Done {
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        if let Some(body) = self.functions.get(name).cloned() {
            return self.with_arguments(arguments, &body);
        }
        let first = arguments.first().map_or("", String::as_str);
        match &**name {
            "set" => {
                if let Some((name, value)) = first.split_once('=') {
                    self.set(name, value);
                }
                Ok(true)
            }
            "unset" => {
                self.variables.remove(first);
                Ok(true)
            }
            "[" | "test" => {
                let end = arguments.len() - usize::from(name == "[" && !arguments.is_empty());
                Ok(self.test(&arguments[..end]))
            }
            "false" => Ok(false),
            "load_env" => self.load_environment(arguments),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => self.search(name, arguments),
            "linux" | "linux16" | "linuxefi" => self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments),
            "source" | "." | "configfile" => self.source(first),
            _ => {
                // NAME=VALUE
                if let Some((name, value)) = name.split_once('=')
                    && !name.is_empty()
                    && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
                {
                    self.set(name, value);
                }
                Ok(true)
            }
        }
    }

    fn test(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let all = |part: &[&str]| part.split(|word| *word == "-a").all(|part| self.is_true(part));
        words.split(|word| *word == "-o").any(all)
    }

    fn is_true(&self, words: &[&str]) -> bool {
        let negations = words.iter().take_while(|word| **word == "!").count();
        self.holds(&words[negations..]) ^ !negations.is_multiple_of(2)
    }

    /// A condition without a `!` before it.
    fn holds(&self, words: &[&str]) -> bool {
        match words {
            ["-n", text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            ["-s" | "-f" | "-e" | "-d", path] => {
                self.place(path).is_some_and(|(_, files, path)| files.has(&path))
            }
            [one, "=" | "==", other] => one == other,
            [one, "!=", other] => one != other,
            [one, operator, other] => {
                let (Ok(one), Ok(other)) = (one.parse::<i64>(), other.parse::<i64>()) else { return false };
                match *operator {
                    "-eq" => one == other,
                    "-ne" => one != other,
                    "-lt" | "<" => one < other,
                    "-le" | "<=" => one <= other,
                    "-gt" | ">" => one > other,
                    "-ge" | ">=" => one >= other,
                    _ => false,
                }
            }
            [text] => !text.is_empty(),
            _ => false,
        }
    }

    /// The volume that a path leads to, its files, and the path there.
    fn place(&self, path: &str) -> Option<(usize, &'v dyn Files, String)> {
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.variable("root"), path),
        };
        let index = self.volumes.iter().position(|volume| is_device(volume, device))?;
        match &self.volumes[index].files {
            Ok(files) => Some((index, &**files, format!("/{}", path.trim_start_matches('/')))),
            Err(_) => None,
        }
    }

    fn load_environment(&mut self, arguments: &[String]) -> Done {
        let file = match arguments {
            [option, file, ..] if option == "--file" || option == "-f" => file.clone(),
            _ => format!("{}/grubenv", self.variable("prefix")),
        };
        let Some((_, files, path)) = self.place(&file) else { return Ok(false) };
        let Ok(bytes) = files.read(&path, 1 << 16) else { return Ok(false) };
        for (name, value) in environment(&bytes) {
            self.set(&name, &value);
        }
        Ok(true)
    }

    /// `search [--fs-uuid | --label | --file] [--set=NAME] WANTED`, `search.fs_uuid WANTED NAME [HINT...]`
    fn search(&mut self, name: &str, arguments: &[String]) -> Done {
        let (mut by, mut variable, mut others) = (name, None, Vec::new());
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--fs-uuid" | "-u" => by = "search.fs_uuid",
                "--label" | "--fs-label" | "-l" => by = "search.fs_label",
                "--file" | "-f" => by = "search.file",
                "--hint" | "-h" => drop(words.next()),
                word => match word.strip_prefix("--set=") {
                    Some(name) => variable = Some(name),
                    None if word.starts_with('-') => {}
                    None => others.push(word),
                },
            }
        }
        let (wanted, named) = match (name, &others[..]) {
            ("search", [named, .., wanted]) => (*wanted, Some(*named)),
            (_, [wanted]) => (*wanted, None),
            (_, [wanted, named, ..]) => (*wanted, Some(*named)),
            (_, []) => return Ok(false),
        };
        let variable = variable.or(named).unwrap_or("root");
        let is_it = |files: &dyn Files| match by {
            "search.fs_uuid" => files.uuid().eq_ignore_ascii_case(wanted),
            "search.fs_label" => files.label() == wanted,
            _ => files.has(wanted),
        };
        let found =
            self.volumes.iter().find(|volume| volume.files.as_ref().is_ok_and(|files| is_it(&**files)));
        if let Some(volume) = found {
            self.set(variable, &device(volume));
        }
        Ok(found.is_some())
    }

    fn linux(&mut self, arguments: &[String]) -> Done {
        let Some((path, rest)) = arguments.split_first() else { return Ok(false) };
        let Some((volume, files, kernel)) = self.place(path) else { return Ok(false) };
        if !files.has(&kernel) {
            return Ok(false);
        }
        self.linux = Some(Linux { volume, kernel, initrds: Vec::new(), cmdline: rest.join(" ") });
        Ok(true)
    }

    fn initrd(&mut self, arguments: &[String]) -> Done {
        let mut paths = Vec::new();
        for path in arguments.iter().filter(|path| !path.starts_with("--")) {
            let Some((volume, _, path)) = self.place(path) else { return Ok(false) };
            if self.linux.as_ref().is_some_and(|linux| linux.volume != volume) {
                return Err("an entry's kernel and its initrd are on different partitions");
            }
            paths.push(path);
        }
        if let Some(linux) = &mut self.linux {
            linux.initrds = paths;
        }
        Ok(true)
    }

    fn source(&mut self, path: &str) -> Done {
        let Some((_, files, path)) = self.place(path) else { return Ok(false) };
        let Some(text) = text_of(files, &path) else { return Ok(false) };
        self.spend(text.len() / BYTES_PER_STEP)?;
        let commands = parse(&text)?;
        self.run(&commands)
    }
}

/// GRUB's name of a volume.
fn device(volume: &Volume) -> String {
    match volume.slice.scheme {
        Scheme::Gpt => format!("hd0,gpt{}", volume.slice.number),
        Scheme::Mbr => format!("hd0,msdos{}", volume.slice.number),
        Scheme::Bare => "hd0".into(),
    }
}

fn is_device(volume: &Volume, name: &str) -> bool {
    let short = format!("hd0,{}", volume.slice.number);
    name == device(volume) || name == short
}
