//! `/api/v3/plugins/files` and `/api/v3/plugins/directory`: plugin text into the plugin directory (reference, 3.8).

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use serde_json::Value;

use super::port::ShardPort;
use super::request::{Fields, json_body};
use super::response::{HttpError, HttpResult, empty};
use super::router::Ctx;
use super::strict::{check_names, params_of};

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

/// As [`file_fields`], for a folder.
async fn folder_fields<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> Result<Fields, HttpError>
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    params_of(parts, &["db"])?;
    json_body(parts, body, ctx.body_limit(), &["plugin_name", "files"]).await
}

/// `POST`: writes files of a folder by its path, all at once. An addition.
pub(crate) async fn create_folder<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = folder_fields(ctx, parts, body).await?;
    let (folder, files) = (fields.text("plugin_name")?.to_owned(), files(&fields)?);
    ctx.shared.parts.registry.write_plugin_folder(folder, files).await?;
    Ok(empty(StatusCode::OK))
}

/// `PUT`: writes files of the folder of a trigger, all at once; `plugin_name` is the trigger's name. Others that are there stay.
pub(crate) async fn update_folder<P, B>(ctx: &Ctx<'_, P>, parts: &Parts, body: B) -> HttpResult
where
    P: ShardPort,
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let fields = folder_fields(ctx, parts, body).await?;
    let (trigger, files) = (fields.text("plugin_name")?.to_owned(), files(&fields)?);
    ctx.shared.parts.registry.write_trigger_folder(trigger, files).await?;
    Ok(empty(StatusCode::OK))
}

/// The member `files`: a list of paths in the folder and texts.
fn files(fields: &Fields) -> Result<Vec<(String, String)>, HttpError> {
    let wrong = || HttpError::field("files", "expected a list of objects with relative_path and content");
    let list = fields.get("files").and_then(Value::as_array).ok_or_else(wrong)?;
    let file = |file: &Value| {
        if let Some(file) = file.as_object() {
            check_names(file.keys().map(String::as_str), &["relative_path", "content"], "field", " in files")?;
        }
        let text = |name: &str| file.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(wrong);
        Ok((text("relative_path")?, text("content")?))
    };
    list.iter().map(file).collect()
}
