//! A caller that came in, and what it may do from then on.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{Credentials, Denied, Identity, Role, credentials::Shown, now, rules::Access};

/// How often an expiry is looked at: the clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(2);

/// How much of a project's name that is not allowed is repeated.
const MOST_TOLD: usize = 128;

/// The projects that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About<'a> {
    /// None: it is about servers.
    Servers,
    /// This one.
    Project(&'a str),
    /// All: it lists or watches without naming one.
    EveryProject,
    /// Many, each looked at by itself.
    Each,
}

/// A request that is about projects, or says that it is not.
pub trait AboutProjects {
    /// The projects.
    fn about(&self) -> About<'_>;
}

/// A caller that came in.
#[derive(Debug, Clone)]
pub struct Caller {
    identity: Arc<Identity>,
    /// What it came in by; none where nobody needs credentials.
    by: Option<Proof>,
}

/// What a caller showed, and where that is looked up again.
#[derive(Debug, Clone)]
struct Proof {
    shown: Shown,
    /// When it is over by itself, whatever the credentials say.
    not_after: Option<Duration>,
    credentials: watch::Receiver<Arc<Credentials>>,
}

impl Caller {
    /// A caller where nobody needs credentials: it may do everything, and has no name.
    pub(super) fn anyone() -> Self {
        Self::trusted(String::new(), None)
    }

    /// A caller that may do everything.
    pub(super) fn trusted(name: String, expires: Option<Duration>) -> Self {
        let identity = Identity { name, role: Role::Admin, projects: None, expires };
        Self { identity: Arc::new(identity), by: None }
    }

    /// A caller by what it showed, if that counts now.
    pub(super) fn by(
        shown: Shown,
        not_after: Option<Duration>,
        credentials: &watch::Receiver<Arc<Credentials>>,
    ) -> Option<Self> {
        let identity = Arc::clone(credentials.borrow().find(&shown)?);
        Some(Self { identity, by: Some(Proof { shown, not_after, credentials: credentials.clone() }) })
    }

    /// Its name; empty where nobody needs credentials.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Whether it may make a call that takes this.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may(&self, access: Access) -> Result<(), Denied> {
        let Identity { name, role, .. } = &*self.identity;
        self.is_not_over()?;
        match access {
            Access::From(takes) if *role < takes => {
                Err(Denied::Role { name: name.clone(), role: *role, takes })
            }
            Access::From(_) | Access::Open => Ok(()),
        }
    }

    /// Whether it may ask about these projects.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_ask_about(&self, about: About<'_>) -> Result<(), Denied> {
        let Identity { name, projects: Some(projects), .. } = &*self.identity else { return Ok(()) };
        let (name, told) = (name.clone(), projects.join(", "));
        match about {
            About::Servers | About::Each => Ok(()),
            About::Project(project_id) if projects.iter().any(|start| project_id.starts_with(start)) => {
                Ok(())
            }
            About::Project(project_id) => {
                let project_id = project_id.chars().take(MOST_TOLD).flat_map(char::escape_debug).collect();
                Err(Denied::OtherProject { name, projects: told, project_id })
            }
            About::EveryProject => Err(Denied::EveryProject { name, projects: told }),
        }
    }

    /// Whether what it may do can end by itself.
    #[must_use]
    pub fn can_end(&self) -> bool {
        self.by.is_some() || self.identity.expires.is_some()
    }

    /// Waits until its credential is taken away, changed, or over.
    pub async fn ended(self) -> Denied {
        let mut by = self.by.clone();
        loop {
            if let Err(over) = self.is_not_over() {
                return over;
            }
            let changed = async {
                let changed = match &mut by {
                    Some(proof) => proof.credentials.changed().await.is_ok(),
                    None => false,
                };
                // Without its sender the file is not looked at any more: the service ends.
                if !changed {
                    std::future::pending::<()>().await;
                }
            };
            let look = async {
                match self.expires() {
                    Some(expires) => tokio::time::sleep(expires.saturating_sub(now()).min(LOOK)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = look => {}
            }
        }
    }

    /// When what it showed is over, as the credentials have it now.
    fn expires(&self) -> Option<Duration> {
        match &self.by {
            Some(Proof { shown, not_after, credentials }) => {
                let credential = credentials.borrow().find(shown).and_then(|found| found.expires);
                [credential, *not_after].into_iter().flatten().min()
            }
            None => self.identity.expires,
        }
    }

    /// Whether what it showed still makes it who it is.
    fn is_not_over(&self) -> Result<(), Denied> {
        if let Some(Proof { shown, credentials, .. }) = &self.by {
            let credentials = credentials.borrow();
            let same = credentials.find(shown).is_some_and(|found| {
                let Identity { name, role, projects, .. } = &*self.identity;
                (name, role, projects) == (&found.name, &found.role, &found.projects)
            });
            if !same {
                return Err(match shown {
                    Shown::Token(_) => Denied::UnknownToken,
                    Shown::Certificate(name) => Denied::UnknownCertificate(name.clone()),
                });
            }
        }
        match self.expires() {
            Some(expires) if expires <= now() => Err(Denied::Expired(self.identity.name.clone())),
            _ => Ok(()),
        }
    }
}
