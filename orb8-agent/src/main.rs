//! The agent's process: settings, log, run, exit code.

use std::process::ExitCode;
use std::time::Duration;

use orb8_agent::agent::{self, Agent, AgentError, Parts};
use orb8_agent::config::{self, Settings};
use orb8_agent::ebpf::clsact::Removed;
use orb8_agent::shutdown::Shutdown;
use orb8_agent::telemetry;

/// What still runs beside when the agent has ended is waited for this long.
const GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let config = match config::parse(std::env::args_os()) {
        Ok(config) => config,
        Err(error) => error.exit(),
    };
    if config.settings.print_config {
        #[allow(clippy::print_stdout, reason = "it is what was asked for")]
        {
            print!("{}", config.print());
        }
        return ExitCode::SUCCESS;
    }
    match run(&config.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            let code = error.downcast_ref().map_or(1, AgentError::exit_code);
            ExitCode::from(code)
        }
    }
}

fn run(settings: &Settings) -> anyhow::Result<()> {
    telemetry::init(telemetry::filter(&settings.rust_log)?);
    if settings.cleanup {
        let Removed { filters, qdiscs, living } = agent::cleanup()?;
        tracing::info!(filters, qdiscs, living, "Removed what dead agents had left.");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::listen()?;
        let agent = Agent::start(settings, Parts::of_this_host(settings)).await?;
        agent.run_until(shutdown.asked()).await?;
        Ok(())
    });
    // A name that is being resolved, or a credential plugin, may never end.
    runtime.shutdown_timeout(GRACE);
    ended
}
