//! Two nodes and a cell, in any order of starts, pairings, losses and deaths, also between a change of the cell and the
//! stamp that follows from it: a VM never begins to run from an image that lacks something that it wrote.

use ft_mirror::{CellView, History, Holder, ImageOf, Judgement, Stamp, judge};
use proptest::prelude::*;

const OF: ImageOf = ImageOf { vm: 1, image: 2, disk_bytes: 4096 };
const CELL: u64 = 9;

#[derive(Clone, Copy, Debug)]
struct Cell {
    generation: u64,
    owner: Option<usize>,
    /// The node, and its pairing.
    standby: Option<(usize, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// The number of the last write that its image has.
    image: u64,
    stamp: Option<Stamp>,
    runs: bool,
    /// What it has sealed.
    follows: Option<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Start(usize),
    Write,
    Pair,
    LoseBackup,
    TakeOver,
    End,
    Die(usize),
    /// Whoever acts next dies after so many durable acts.
    DieSoon(u8),
}

/// Somebody died in the middle.
struct Died;

#[derive(Default)]
struct World {
    cell: Option<Cell>,
    nodes: [Node; 2],
    written: u64,
    pairings: u64,
    acts_left: Option<u8>,
    refused: u32,
    /// The backup's machine changes its image, as it executes the log: the image is nobody's until it has taken over.
    replay: bool,
}

impl World {
    fn act(&mut self, node: usize) -> Result<(), Died> {
        match &mut self.acts_left {
            Some(0) => {
                self.acts_left = None;
                self.die(node);
                Err(Died)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn die(&mut self, node: usize) {
        (self.nodes[node].runs, self.nodes[node].follows) = (false, None);
    }

    fn set(&mut self, by: usize, owner: Option<usize>, standby: Option<(usize, u64)>) -> Result<u64, Died> {
        self.act(by)?;
        let generation = self.cell.map_or(0, |cell| cell.generation) + 1;
        self.cell = Some(Cell { generation, owner, standby });
        Ok(generation)
    }

    fn stamp(&mut self, node: usize, history: History) -> Result<(), Died> {
        self.act(node)?;
        self.nodes[node].stamp = Some(Stamp { of: OF, cell: CELL, history });
        Ok(())
    }

    fn primary(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.runs)
    }

    fn verdict(&self, node: usize) -> Judgement {
        let view = self.cell.map(|cell| CellView {
            cell: CELL,
            generation: cell.generation,
            holder: match cell.owner {
                None => Holder::Nobody,
                Some(owner) if owner == node => Holder::This,
                Some(_) => Holder::Other,
            },
        });
        judge(view, OF, self.nodes[node].stamp.as_ref())
    }

    fn run(&mut self, node: usize, generation: u64) -> Result<(), Died> {
        self.stamp(node, History::Ran { generation })?;
        assert_eq!(self.nodes[node].image, self.written, "node {node} runs from an older image");
        (self.nodes[node].runs, self.nodes[node].follows) = (true, None);
        Ok(())
    }

    /// An operator boots the VM, on a node that the cell does not forbid it.
    fn start(&mut self, node: usize) -> Result<(), Died> {
        let verdict = self.verdict(node);
        if self.primary().is_some() || verdict == Judgement::Behind {
            return Ok(());
        }
        let generation = self.set(node, Some(node), None)?;
        match verdict {
            verdict if verdict.may_run() => self.run(node, generation),
            Judgement::RightOnceCarriedOut { .. } => self.run(node, generation),
            _ => {
                self.refused += 1;
                self.set(node, None, None).map(drop)
            }
        }
    }

    fn pair(&mut self) -> Result<(), Died> {
        let Some(primary) = self.primary() else { return Ok(()) };
        let backup = 1 - primary;
        if self.nodes[backup].follows.is_some() {
            return Ok(());
        }
        self.pairings += 1;
        let pairing = self.pairings;
        self.stamp(backup, History::Mixed { pairing })?;
        self.nodes[backup].image = u64::MAX;
        self.act(backup)?;
        self.nodes[backup].image = self.written;
        if !self.replay {
            self.stamp(backup, History::Follows { pairing, named_in: None })?;
        }
        self.nodes[backup].follows = Some(pairing);
        let generation = self.set(primary, Some(primary), Some((backup, pairing)))?;
        self.stamp(
            backup,
            match self.replay {
                false => History::Follows { pairing, named_in: Some(generation) },
                true => History::Mixed { pairing },
            },
        )?;
        self.stamp(primary, History::Ran { generation })
    }

    /// The primary goes on without its backup, which may live.
    fn lose_backup(&mut self) -> Result<(), Died> {
        let Some(primary) = self.primary() else { return Ok(()) };
        if self.cell.is_some_and(|cell| cell.standby.is_some()) {
            let generation = self.set(primary, Some(primary), None)?;
            self.nodes[1 - primary].follows = None;
            self.stamp(primary, History::Ran { generation })?;
        }
        Ok(())
    }

    fn take_over(&mut self) -> Result<(), Died> {
        let Some(Cell { standby: Some((node, pairing)), owner: Some(primary), .. }) = self.cell else {
            return Ok(());
        };
        if self.nodes[node].follows != Some(pairing) {
            return Ok(());
        }
        let generation = self.set(node, Some(node), None)?;
        self.nodes[primary].runs = false;
        if self.replay {
            // The rest of the log is executed, and the image is flushed.
            self.nodes[node].image = self.written;
        }
        self.run(node, generation)
    }

    fn write(&mut self) {
        let Some(primary) = self.primary() else { return };
        let standby = self.cell.and_then(|cell| cell.standby);
        let follows = self.nodes[1 - primary].follows;
        // Protected, and the backup is gone: output is held, nothing counts until the cell says that it is alone.
        if standby.is_some() && follows.is_none() {
            return;
        }
        self.written += 1;
        self.nodes[primary].image = self.written;
        // In replay mode it is executed some time later.
        if follows.is_some() && !self.replay {
            self.nodes[1 - primary].image = self.written;
        }
    }

    fn step(&mut self, step: &Step) {
        // Who dies is dead already.
        let _ = match step {
            Step::Start(node) => self.start(*node),
            Step::Pair => self.pair(),
            Step::LoseBackup => self.lose_backup(),
            Step::TakeOver => self.take_over(),
            Step::End => match self.primary() {
                Some(primary) => {
                    let ended = self.set(primary, None, None).map(drop);
                    (0..2).for_each(|node| self.die(node));
                    ended
                }
                None => Ok(()),
            },
            Step::Write => {
                self.write();
                Ok(())
            }
            Step::Die(node) => {
                self.die(*node);
                Ok(())
            }
            Step::DieSoon(acts) => {
                self.acts_left = Some(*acts);
                Ok(())
            }
        };
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..2_usize).prop_map(Step::Start),
        8 => Just(Step::Write),
        6 => Just(Step::Pair),
        2 => Just(Step::LoseBackup),
        3 => Just(Step::TakeOver),
        1 => Just(Step::End),
        3 => (0..2_usize).prop_map(Step::Die),
        2 => (0..6_u8).prop_map(Step::DieSoon),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_vm_never_runs_from_an_image_that_lacks_something(steps in steps(), replay in any::<bool>()) {
        let mut world = World { replay, ..World::default() };
        for step in &steps {
            world.step(step);
        }
    }
}

fn played(steps: &[Step]) -> World {
    let mut world = World::default();
    steps.iter().for_each(|step| world.step(step));
    world
}

#[test]
fn after_the_loss_of_both_the_owner_boots_from_its_image() {
    use Step::{Die, Pair, Start, TakeOver, Write};
    let both = [Die(0), Die(1)];
    for (before, owner) in [
        (vec![Start(0), Write], 0),
        (vec![Start(0), Pair, Write], 0),
        (vec![Start(0), Pair, Write, Die(0), TakeOver, Write], 1),
        (vec![Start(0), Pair, Write, Die(0), TakeOver, Pair, Write], 1),
    ] {
        let mut world = played(&[&before[..], &both[..], &[Start(1 - owner), Start(owner)]].concat());
        assert_eq!((world.primary(), world.refused), (Some(owner), 0), "{before:?}");
        world.step(&Write);
        assert_eq!(world.nodes[owner].image, world.written);
    }
}

#[test]
fn a_node_that_died_when_it_had_won_the_cell_goes_on_from_what_it_won_with() {
    use Step::{Die, DieSoon, Pair, Start, TakeOver, Write};
    let world = played(&[Start(0), Pair, Write, Die(0), DieSoon(1), TakeOver]);
    assert_eq!(world.primary(), None);
    assert!(matches!(world.verdict(1), Judgement::RightOnceCarriedOut { pairing: 1 }));
    assert_eq!(world.verdict(0), Judgement::Behind);
}

#[test]
fn in_replay_mode_an_image_is_nobodys_from_the_copy_until_its_node_has_taken_over() {
    use Step::{Die, DieSoon, Pair, Start, TakeOver, Write};
    let replayed = |steps: &[Step]| {
        let mut world = World { replay: true, ..World::default() };
        steps.iter().for_each(|step| world.step(step));
        world
    };
    // A backup that dies comes back behind, and the owner goes on.
    let world = replayed(&[Start(0), Pair, Write, Die(1)]);
    assert_eq!((world.primary(), world.verdict(1)), (Some(0), Judgement::Behind));
    // Both: the owner boots, and no other.
    let world = replayed(&[Start(0), Pair, Write, Die(0), Die(1), Start(1), Start(0)]);
    assert_eq!((world.primary(), world.refused), (Some(0), 0));
    // It has won, and dies before its image says that it ran: the operator decides.
    let world = replayed(&[Start(0), Pair, Write, Die(0), DieSoon(1), TakeOver, Start(0), Start(1)]);
    assert_eq!((world.primary(), world.refused), (None, 1));
    let world = replayed(&[Start(0), Pair, Write, Die(0), DieSoon(1), TakeOver]);
    assert_eq!(world.verdict(1), Judgement::Nobodys { pairing: 1 });
    assert_eq!(world.verdict(0), Judgement::Behind);
    // It has taken over, and dies then.
    let world = replayed(&[Start(0), Pair, Write, Die(0), TakeOver, Write, Die(1), Start(1)]);
    assert_eq!((world.primary(), world.refused), (Some(1), 0));
}

#[test]
fn a_vm_that_has_ended_boots_where_it_ran_and_not_where_it_did_not() {
    use Step::{End, Pair, Start, Write};
    let world = played(&[Start(0), Pair, Write, End, Start(1)]);
    assert_eq!((world.primary(), world.refused), (None, 1));
    let world = played(&[Start(0), Pair, Write, End, Start(0)]);
    assert_eq!(world.primary(), Some(0));
}
