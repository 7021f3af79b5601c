//! Runs the API server alone until it is interrupted; for trying things by hand.

use std::path::Path;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: serve DIRECTORY [PORT]")?;
    let port: u16 = std::env::args().nth(2).map_or(Ok(0), |port| port.parse())?;
    let mut config = berth_apiserver::Config::new(Path::new(&dir), "node-1");
    config.bind = ([127, 0, 0, 1], port).into();
    let server = berth_apiserver::start(config).await?;
    println!("{} {}", server.url, server.credentials.admin_kubeconfig.display());
    tokio::signal::ctrl_c().await?;
    server.stop().await;
    Ok(())
}
