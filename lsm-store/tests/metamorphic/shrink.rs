//! Makes a failing history small, and its options plain: delta debugging (Zeller, Hildebrandt:
//! "Simplifying and isolating failure-inducing input", 2002) over operations, then within them, then
//! over options.

use lsm_store::Executor;

use crate::ops::Op;
use crate::player::Setup;
use crate::setups::{SIMPLIFY, default_options};

/// Histories to try at most: enough for hundreds of operations, and an end in any case.
const TRIES_MAX: usize = 3000;

/// A failure and what is needed for it.
pub(crate) struct Failure {
    pub(crate) ops: Vec<Op>,
    pub(crate) setup: Setup,
    /// What went wrong, and at which operation.
    pub(crate) what: String,
}

/// Tries histories, and remembers the smallest that fails.
struct Shrinker<F> {
    fails: F,
    best: Failure,
    tries: usize,
}

impl<F: Fn(&[Op], &Setup) -> Option<String>> Shrinker<F> {
    fn try_this(&mut self, ops: Vec<Op>, setup: Setup) -> bool {
        self.tries += 1;
        if self.tries > TRIES_MAX {
            return false;
        }
        let Some(what) = (self.fails)(&ops, &setup) else { return false };
        self.best = Failure { ops, setup, what };
        true
    }

    /// Leaves out stretches of operations, shorter and shorter ones.
    fn fewer_ops(&mut self) -> bool {
        let mut any = false;
        let mut length = self.best.ops.len() / 2;
        while length > 0 {
            let mut start = 0;
            while start < self.best.ops.len() {
                let end = (start + length).min(self.best.ops.len());
                let mut ops = self.best.ops.clone();
                ops.drain(start..end);
                if self.try_this(ops, self.best.setup.clone()) {
                    any = true;
                } else {
                    start = end;
                }
            }
            length /= 2;
        }
        any
    }

    /// Leaves out parts of single operations.
    fn smaller_ops(&mut self) -> bool {
        let mut any = false;
        for i in 0..self.best.ops.len() {
            let mut part = 0;
            while let Some(smaller) = without(&self.best.ops[i], part) {
                let mut ops = self.best.ops.clone();
                ops[i] = smaller;
                if ops != self.best.ops && self.try_this(ops, self.best.setup.clone()) {
                    any = true;
                } else {
                    part += 1;
                }
            }
        }
        any
    }

    /// Cuts values to one byte.
    fn shorter_values(&mut self) -> bool {
        let mut any = false;
        for i in 0..self.best.ops.len() {
            let mut ops = self.best.ops.clone();
            if let Op::Run { batches, .. } = &mut ops[i] {
                let values = batches.iter_mut().flat_map(|batch| &mut batch.ops);
                values.filter_map(|(.., value)| value.as_mut()).for_each(|value| value.truncate(1));
            }
            any |= ops != self.best.ops && self.try_this(ops, self.best.setup.clone());
        }
        any
    }

    fn plainer_setup(&mut self) -> bool {
        let mut any = false;
        let mut try_setup = |this: &mut Self, change: &dyn Fn(&mut Setup)| {
            let mut setup = this.best.setup.clone();
            change(&mut setup);
            if setup.executor != this.best.setup.executor
                || setup.options != this.best.setup.options
            {
                any |= this.try_this(this.best.ops.clone(), setup);
            }
        };
        try_setup(self, &|setup| setup.executor = Executor::Inline);
        try_setup(self, &|setup| setup.options[1] = setup.options[0].clone());
        for (_, simplify) in SIMPLIFY {
            for both in [true, false] {
                try_setup(self, &|setup| {
                    let plain = default_options(setup.options[0].mode);
                    simplify(&mut setup.options[0], &plain);
                    if both {
                        simplify(&mut setup.options[1], &plain);
                    }
                });
            }
        }
        any
    }
}

/// The operation without its part number `part`; none if it has no such part.
fn without(op: &Op, part: usize) -> Option<Op> {
    let mut op = op.clone();
    match &mut op {
        Op::Run { batches, read } => {
            let parts: usize = batches.iter().map(|batch| batch.ops.len()).sum();
            if part < batches.len() && batches.len() > 1 {
                batches.remove(part);
            } else if part < parts {
                let mut left = part;
                let batch = batches.iter_mut().find(|batch| {
                    let here = left < batch.ops.len();
                    left -= if here { 0 } else { batch.ops.len() };
                    here
                })?;
                // An empty batch is none.
                if batch.ops.len() > 1 {
                    batch.ops.remove(left);
                }
            } else if part - parts < read.len() {
                read.remove(part - parts);
            } else {
                return None;
            }
        }
        Op::Walk { moves, .. } if part < moves.len() => {
            moves.remove(part);
        }
        Op::Get { keys, .. } | Op::Read { keys, .. } if part < keys.len() => {
            keys.remove(part);
        }
        Op::Walk { .. }
        | Op::Get { .. }
        | Op::Read { .. }
        | Op::Scan { .. }
        | Op::History { .. }
        | Op::TakeView
        | Op::TakeViewAt { .. }
        | Op::DropView(_)
        | Op::OpenIter { .. }
        | Op::DropIter(_)
        | Op::SetFloor(_)
        | Op::Digest { .. }
        | Op::Copy
        | Op::Repair { .. }
        | Op::Compact { .. }
        | Op::Scrub(_)
        | Op::Flush
        | Op::StartFlush
        | Op::Verify
        | Op::Close
        | Op::Kill
        | Op::Crash { .. } => return None,
    }
    Some(op)
}

/// The smallest failure that is found from a given one.
pub(crate) fn shrink(failure: Failure, fails: impl Fn(&[Op], &Setup) -> Option<String>) -> Failure {
    let mut shrinker = Shrinker { fails, best: failure, tries: 0 };
    while shrinker.fewer_ops()
        | shrinker.plainer_setup()
        | shrinker.smaller_ops()
        | shrinker.shorter_values()
    {}
    shrinker.best
}

/// The failure as a text: operations, and the options that are not the defaults.
pub(crate) fn describe(failure: &Failure) -> String {
    use std::fmt::Write;
    let mut text = format!("{}\n\noperations:\n", failure.what);
    let mut line = |line: String| writeln!(text, "{line}").expect("a string takes everything");
    for (i, op) in failure.ops.iter().enumerate() {
        line(format!("{i:4}  {op:?}"));
    }
    let plain = default_options(failure.setup.options[0].mode);
    line(format!("\n{:?}, {:?}, all options plain but", failure.setup.executor, plain.mode));
    for (i, options) in failure.setup.options.iter().enumerate() {
        for (name, simplify) in SIMPLIFY {
            let mut same = options.clone();
            simplify(&mut same, &plain);
            if same != *options {
                let all = format!("{options:?}");
                let value = all.split(&format!("{name}: ")).nth(1).unwrap_or("");
                let value = value.split([',', ' ']).next().unwrap_or("");
                line(format!("      options[{i}].{name} = {value}"));
            }
        }
    }
    text
}
