//! Chapters for readers. They contain no code.

#[doc = picture!("job")]
#[doc = ""]
#[doc = include_str!("verbs.md")]
pub mod verbs {}

// The first definition of a link counts: these, and not the files that the page links to.
#[doc = "[aiojobs]: crate::docs::migration::aiojobs"]
#[doc = "[tokio]: crate::docs::migration::tokio"]
#[doc = "[FastAPI]: crate::docs::migration::fastapi"]
#[doc = "[Express]: crate::docs::migration::express"]
#[doc = "[Laravel]: crate::docs::migration::laravel"]
#[doc = "[Next.js]: crate::docs::migration::nextjs"]
#[doc = "[Spring]: crate::docs::migration::spring"]
#[doc = ""]
#[doc = include_str!("migration.md")]
pub mod migration {
    #[doc = include_str!("migration/aiojobs.md")]
    pub mod aiojobs {}

    #[doc = include_str!("migration/express.md")]
    pub mod express {}

    #[doc = include_str!("migration/fastapi.md")]
    pub mod fastapi {}

    #[doc = include_str!("migration/laravel.md")]
    pub mod laravel {}

    #[doc = include_str!("migration/nextjs.md")]
    pub mod nextjs {}

    #[doc = include_str!("migration/spring.md")]
    pub mod spring {}

    #[doc = include_str!("migration/tokio.md")]
    pub mod tokio {}
}

#[doc = include_str!("recipes.md")]
pub mod recipes {}

#[doc = picture!("layers")]
#[doc = ""]
#[doc = include_str!("middleware_order.md")]
pub mod middleware_order {}

#[doc = picture!("response")]
#[doc = ""]
#[doc = include_str!("response_end.md")]
pub mod response_end {}

#[doc = picture!("context")]
#[doc = ""]
#[doc = include_str!("context.md")]
pub mod context {}

#[doc = include_str!("shutdown.md")]
pub mod shutdown {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("observability.md")]
pub mod observability {}

#[doc = include_str!("metrics.md")]
pub mod metrics {}

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("performance.md")]
pub mod performance {}
