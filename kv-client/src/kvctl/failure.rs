//! How a command can end other than well, and the exit code each end has.

use std::io;

use crate::{Effect, Error, ErrorKind};

/// Why a command ends without having done all it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing went wrong, but the answer is no: exit 1. What there is to say was printed.
    No,
    /// A check found a problem: exit 6. The document that shows it was printed.
    Problem,
    /// Nobody answered: exit 3. The document that shows it was printed.
    NobodyAnswered,
    /// Bad usage or input, found here.
    Usage { message: String, hint: String },
    /// The cluster's answer to a write, or its absence.
    Write(Error),
    /// The same for a read, which never has an effect.
    Read(Error),
    /// An import that could not go on although its input is good: exit 3, running it again is safe.
    Import(Error),
    /// A line of an import that the cluster refuses.
    Line { place: String, error: Error },
    /// Local input or output.
    Io { what: String, error: io::Error },
    /// Nobody reads standard output any more: a quiet end.
    OutputClosed,
    /// SIGINT.
    Interrupted,
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn io(what: impl Into<String>, error: io::Error) -> Self {
        Self::Io { what: what.into(), error }
    }

    /// A failure to write to standard output.
    pub(crate) fn output(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::io("cannot write to standard output", error)
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::No => 1,
            Self::Usage { .. } => 2,
            Self::NobodyAnswered | Self::Import(_) => 3,
            Self::Write(error) | Self::Read(error) | Self::Line { error, .. } => code_of(error),
            Self::Problem => 6,
            Self::Io { .. } => 7,
            Self::Interrupted => 130,
        }
    }

    /// What to say about it, if anything.
    pub(crate) fn report(&self) -> Option<Report> {
        let local = |error: String, kind, hint: &str| Report {
            error,
            kind,
            effect: "none",
            retryable: false,
            hint: hint.to_owned(),
        };
        let cluster = |text, error: &Error| Report {
            error: text,
            kind: error.kind().as_str(),
            effect: error.effect().as_str(),
            retryable: error.is_retryable(),
            hint: error.hint().to_owned(),
        };
        match self {
            Self::No
            | Self::Problem
            | Self::NobodyAnswered
            | Self::OutputClosed
            | Self::Interrupted => None,
            Self::Usage { message, hint } => Some(local(message.clone(), "bad_input", hint)),
            Self::Write(error) | Self::Read(error) | Self::Import(error) => {
                Some(cluster(error.to_string(), error))
            }
            Self::Line { place, error } => Some(cluster(format!("{place}: {error}"), error)),
            Self::Io { what, error } => {
                Some(local(format!("{what}: {error}"), "local_io", "check the path and the disk"))
            }
        }
    }
}

/// An error as it is printed.
#[derive(serde::Serialize, Debug)]
pub(crate) struct Report {
    pub(crate) error: String,
    pub(crate) kind: &'static str,
    pub(crate) effect: &'static str,
    pub(crate) retryable: bool,
    pub(crate) hint: String,
}

fn code_of(error: &Error) -> u8 {
    if error.effect() == Effect::Unknown {
        return 5;
    }
    match error.kind() {
        ErrorKind::BadInput => 2,
        ErrorKind::TooLarge => 4,
        ErrorKind::ConditionFailed => 1,
        ErrorKind::OutcomeUnknown => 5,
        ErrorKind::NoLeader
        | ErrorKind::Unavailable
        | ErrorKind::Timeout
        | ErrorKind::Overloaded
        | ErrorKind::Compacted
        | ErrorKind::FutureRevision
        | ErrorKind::TooStale
        | ErrorKind::Storage
        | ErrorKind::Protocol => 3,
    }
}
