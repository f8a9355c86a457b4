//! Writing the user's objects: what kubectl would do, onto files in `objects/`.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tropis_crds::{Kind, Object, ObjectRef};

use super::{Lab, LabError, PodHandle};
use crate::cluster::ids;
use crate::cluster::object::{Key, is_namespaced, key_of};

impl Lab {
    /// Writes every document of `yaml`, a file each. What cannot be read is written too: to refuse it is the mesh's part.
    pub fn apply(&self, yaml: &str) -> Result<(), LabError> {
        for document in documents(yaml) {
            let name = match serde_saphyr::from_str::<Value>(&document).ok().as_ref().and_then(key_of) {
                Some(key) => file_name(&key),
                None => format!("document-{}.yaml", ids::template_hash(&json!(document))),
            };
            self.write(&name, &document)?;
        }
        Ok(())
    }

    /// Writes a file of the objects folder as it is.
    pub fn write(&self, name: &str, content: &str) -> Result<(), LabError> {
        let path = self.objects_folder()?.join(name);
        tropis_source::write::replace(&path, content.as_bytes())
            .map_err(|error| LabError::File(format!("writing {}", path.display()), error))
    }

    /// Removes a file of the objects folder.
    pub fn remove(&self, name: &str) -> Result<(), LabError> {
        let path = self.objects_folder()?.join(name);
        fs::remove_file(&path).map_err(|error| LabError::File(format!("removing {}", path.display()), error))
    }

    /// Takes an object away that was applied.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<(), LabError> {
        let key = key(kind, namespace, name);
        self.remove(&file_name(&key)).map_err(|_| LabError::NoObject(key))
    }

    /// Sets labels (or removes those without a value) of an object that was applied.
    pub fn label(&self, kind: &str, namespace: &str, name: &str, labels: &[(&str, Option<&str>)]) -> Result<(), LabError> {
        self.change(kind, namespace, name, |object| {
            for (label, value) in labels {
                match value {
                    Some(value) => object["metadata"]["labels"][*label] = json!(value),
                    None => {
                        if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
                            labels.shift_remove(*label);
                        }
                    }
                }
            }
        })
    }

    /// Changes an object that was applied.
    pub fn change(&self, kind: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> Result<(), LabError> {
        let key = key(kind, namespace, name);
        let path = self.objects_folder()?.join(file_name(&key));
        let text = fs::read_to_string(&path).map_err(|_| LabError::NoObject(key.clone()))?;
        let mut object: Value = serde_saphyr::from_str(&text).map_err(|_| LabError::NoObject(key))?;
        change(&mut object);
        let text = serde_json::to_string_pretty(&object).expect("JSON values print");
        tropis_source::write::replace(&path, text.as_bytes()).map_err(|error| LabError::File(format!("writing {}", path.display()), error))
    }

    /// An object as every program of the mesh sees it now: the user's, the cluster's and the reported fields together.
    pub fn object(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.source.get(&ObjectRef::new(kind, namespace, name))
    }

    /// What the redirector says of a pod: `enabled`, `pending`, or nothing.
    pub fn redirection(&self, pod: &PodHandle) -> Option<String> {
        let object = self.object(Kind::Pod, &pod.key().namespace, pod.name())?;
        object.annotation("ambient.istio.io/redirection").map(str::to_owned)
    }

    /// Where objects are written; a user's own folder is not touched.
    fn objects_folder(&self) -> Result<PathBuf, LabError> {
        match &self.manifests {
            None => Ok(self.layout.objects()),
            Some(folder) => Err(LabError::Impossible(format!("objects come from {}, which is yours alone to change", folder.display()))),
        }
    }
}

fn key(kind: &str, namespace: &str, name: &str) -> Key {
    Key::new(kind, if is_namespaced(kind) { namespace } else { "" }, name)
}

fn file_name(key: &Key) -> String {
    match key.namespace.as_str() {
        "" => format!("{}.{}.yaml", key.kind.to_lowercase(), key.name),
        namespace => format!("{}.{namespace}.{}.yaml", key.kind.to_lowercase(), key.name),
    }
}

/// The documents of a YAML stream, as text.
fn documents(yaml: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in yaml.lines() {
        if line.trim_end() == "---" {
            all.push(String::new());
            continue;
        }
        let last = all.last_mut().expect("never empty");
        last.push_str(line);
        last.push('\n');
    }
    all.retain(|document| document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_into_its_documents() {
        assert_eq!(documents("a: 1\n---\n# only a comment\n---\nb: 2\n"), ["a: 1\n", "b: 2\n"]);
        assert_eq!(documents("---\nhalf a: [file"), ["half a: [file\n"]);
    }

    #[test]
    fn files_are_named_by_object() {
        assert_eq!(file_name(&key("Pod", "shop", "web")), "pod.shop.web.yaml");
        assert_eq!(file_name(&key("Namespace", "ignored", "shop")), "namespace.shop.yaml");
    }
}
