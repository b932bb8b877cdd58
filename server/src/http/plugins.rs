//! `/api/v3/plugins/files`: plugin text into the plugin directory (reference, 3.8).

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;

use super::port::ShardPort;
use super::request::{Fields, json_body};
use super::response::{HttpError, HttpResult, empty};
use super::router::Ctx;
use super::strict::params_of;

/// `POST`: writes a file by its path.
pub(crate) async fn create<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = file_fields(ctx, parts, body).await?;
    let (name, content) = (fields.text("plugin_name")?.to_owned(), fields.text("content")?.to_owned());
    ctx.shared.parts.registry.write_plugin_file(name, content).await?;
    Ok(empty(StatusCode::OK))
}

/// `PUT`: writes the file of a trigger; `plugin_name` is the trigger's name.
pub(crate) async fn update<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = file_fields(ctx, parts, body).await?;
    let (trigger, content) = (fields.text("plugin_name")?.to_owned(), fields.text("content")?.to_owned());
    ctx.shared.parts.registry.write_trigger_file(trigger, content).await?;
    Ok(empty(StatusCode::OK))
}

/// The command line of InfluxDB 3 sends the parameter `db` along, which means nothing: plugin files are of no database.
async fn file_fields<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> Result<Fields, HttpError>
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    params_of(parts, &["db"])?;
    json_body(parts, body, ctx.body_limit(), &["plugin_name", "content"]).await
}
