//! The life of the process: parse, start, run, drain.

use std::process::ExitCode;

use clap::Parser as _;
use tanako_bot::args::Args;
use tanako_bot::config::Config;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr(args.log_json);
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("tanako-bot: {error}");
            return ExitCode::from(2);
        }
    };
    // One thread: one shard process is one core's work, and each further thread costs memory.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tanako-bot: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(tanako_bot::app::run(config));
    // A name look-up that hangs must not hold the exit up.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tanako-bot: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(json: bool) {
    // The HTTP and rate limit layers of serenity put routes, which hold interaction tokens, into spans.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info"))
        .add_directive(
            "serenity=warn"
                .parse()
                .expect("invariant: the directive is valid"),
        )
        .add_directive(
            "twilight_gateway=warn"
                .parse()
                .expect("invariant: the directive is valid"),
        );
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        use std::io::IsTerminal as _;
        builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init();
    }
}
