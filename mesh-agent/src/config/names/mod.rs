//! What names of `ServiceEntry` objects resolve to: a source beside the objects, followed in the
//! background.
//!
//! Data flows one way: the snapshot says which names are wanted, answers go to where objects are
//! compiled, and only the next snapshot has their addresses. No request waits for a name. Names are
//! taken as they stand, without the search list of `/etc/resolv.conf`.

mod schedule;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Answers;
use crate::model::Snapshot;
use schedule::{News, Outcome, Schedule};

/// Names that are asked for at one moment; others wait their turn.
const MOST: usize = 64;

/// Whom to ask: these name servers, or without any those of `/etc/resolv.conf`.
#[derive(Clone, Debug, Default)]
pub struct NameServers(pub Vec<SocketAddr>);

/// Keeps resolving the names that the snapshots want, until dropped or nobody listens.
pub async fn resolve(
    servers: NameServers,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    answers: watch::Sender<Arc<Answers>>,
) {
    let mut schedule = Schedule::default();
    let mut is_wanted_anew = true;
    let mut asking: JoinSet<(Arc<str>, Outcome)> = JoinSet::new();
    // Made anew after a failure: the name servers may have changed.
    let mut resolver: Option<TokioResolver> = None;
    loop {
        if std::mem::take(&mut is_wanted_anew) {
            let wanted = snapshots.borrow_and_update().names();
            if schedule.want(&wanted, Instant::now()) {
                tell(&answers, &schedule);
            }
        }
        for name in schedule.take_due(Instant::now(), MOST.saturating_sub(asking.len())) {
            match &resolver {
                Some(resolver) => ask(resolver.clone(), name, &mut asking),
                None => match connect(&servers) {
                    Ok(made) => ask(resolver.insert(made).clone(), name, &mut asking),
                    Err(error) => {
                        let failed = Outcome::Failed(format!("no name server: {error}"));
                        asking.spawn(std::future::ready((name, failed)));
                    }
                },
            }
        }
        let next = schedule.next_due().filter(|_| asking.len() < MOST);
        let mut heard = tokio::select! {
            changed = snapshots.changed() => match changed {
                Ok(()) => {
                    is_wanted_anew = true;
                    None
                }
                Err(_) => return,
            },
            () = answers.closed() => return,
            () = until(next) => None,
            Some(ended) = asking.join_next() => Some(ended),
        };
        let mut is_news = false;
        while let Some(ended) = heard {
            // Only a panic of the resolver's has no outcome; the name is not asked for again then.
            if let Ok((name, outcome)) = ended {
                if matches!(outcome, Outcome::Failed(_)) {
                    resolver = None;
                }
                is_news |= take(&mut schedule, &name, outcome);
            }
            heard = asking.try_join_next();
        }
        if is_news {
            tell(&answers, &schedule);
        }
    }
}

fn tell(answers: &watch::Sender<Arc<Answers>>, schedule: &Schedule) {
    answers.send_replace(Arc::new(schedule.answers()));
}

/// Takes an outcome; whether there are other answers now.
fn take(schedule: &mut Schedule, name: &str, outcome: Outcome) -> bool {
    match schedule.ended(name, outcome, Instant::now()) {
        News::Nothing => false,
        News::Changed => {
            tracing::debug!(name, "name resolved anew");
            true
        }
        News::Failing(reason) => {
            tracing::warn!(name, reason, "name cannot be resolved: its last addresses stay");
            true
        }
        News::Recovered => {
            tracing::info!(name, "name can be resolved again");
            true
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn connect(NameServers(given): &NameServers) -> Result<TokioResolver, NetError> {
    let (config, mut options) = match given.as_slice() {
        [] => {
            let (system, options) = read_system_conf()?;
            let (_, _, servers) = system.into_parts();
            (ResolverConfig::from_name_servers(servers), options)
        }
        given => {
            let servers = given.iter().map(name_server).collect();
            (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
        }
    };
    // Answers are kept here.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let provider = TokioRuntimeProvider::default();
    TokioResolver::builder_with_config(config, provider).with_options(options).build()
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn ask(resolver: TokioResolver, name: Arc<str>, asking: &mut JoinSet<(Arc<str>, Outcome)>) {
    asking.spawn(async move {
        let outcome = look_up(&resolver, &name).await;
        (name, outcome)
    });
}

/// Asks for both families. One that fails is no matter where the other is there; it is asked for again
/// with it.
async fn look_up(resolver: &TokioResolver, name: &str) -> Outcome {
    // With the final dot nothing is appended.
    let Ok(absolute) = Name::from_ascii(format!("{name}.")) else {
        return Outcome::Failed("not a name of the DNS".to_owned());
    };
    let (v4, v6) = tokio::join!(
        resolver.lookup(absolute.clone(), RecordType::A),
        resolver.lookup(absolute, RecordType::AAAA),
    );
    let (mut ips, mut holds): (Vec<IpAddr>, _) = (Vec::new(), u32::MAX);
    let mut reason = "no address".to_owned();
    for family in [v4, v6] {
        match family {
            Ok(found) => {
                for record in found.answers() {
                    ips.extend(record.data.ip_addr());
                    holds = holds.min(record.ttl);
                }
            }
            Err(error) => reason = error.to_string(),
        }
    }
    match ips.is_empty() {
        true => Outcome::Failed(reason),
        false => Outcome::Found(ips, Duration::from_secs(holds.into())),
    }
}

#[cfg(test)]
mod tests;
