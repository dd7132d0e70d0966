//! The command line as a user meets it: codes, streams, messages, signals. Traces nothing but what a test has started.

mod arguments;
mod commands;
mod ends;
mod examples;
mod outputs;
mod pagemap;
mod policy;
mod provoke;
mod recordings;
mod run;
mod selection;
mod unprivileged;
mod verify;
mod vm;
