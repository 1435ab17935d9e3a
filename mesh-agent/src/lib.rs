//! Malha's node agent: capture, tunnel, HTTP engine, configuration.
//!
//! Modules by rank (an import may only point to a lower one): see ARCHITECTURE.md.

pub mod api;
pub mod model;
mod waits;

pub mod authz;
pub mod balance;
pub mod capture;
pub mod config;
pub mod identity;
pub mod origination;
pub mod telemetry;

pub mod tunnel;

pub mod http;

pub mod proxy;

pub mod admin;
pub mod authority;
pub mod cli;

pub mod agent;
