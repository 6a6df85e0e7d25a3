//! Pictures in the documentation, for light and dark themes.

/// The picture `docs/pictures/NAME.svg`, or in rustdoc's dark themes `NAME-dark.svg`, as a line of HTML for `#[doc]`.
///
/// The two are in one page, so ids of a dark picture begin with `dark-`: an arrowhead of a hidden picture is not
/// drawn. A `<picture>` would follow the browser's colour scheme, and rustdoc's theme can differ from that.
macro_rules! picture {
    ($name:literal) => {
        concat!(
            "<div><style>.tower-jobs-dark { display: none }\n",
            "html:is([data-theme=dark], [data-theme=ayu]) .tower-jobs-dark { display: block }\n",
            "html:is([data-theme=dark], [data-theme=ayu]) .tower-jobs-light { display: none }\n",
            "</style><div class=\"tower-jobs-light\">\n",
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pictures/", $name, ".svg")),
            "</div><div class=\"tower-jobs-dark\">\n",
            include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/docs/pictures/",
                $name,
                "-dark.svg"
            )),
            "</div></div>\n",
        )
    };
}

#[cfg(test)]
mod tests {
    #[test]
    fn light_and_dark_picture_share_no_id() {
        for html in [
            picture!("context"),
            picture!("job"),
            picture!("layers"),
            picture!("response"),
            picture!("shutdown"),
        ] {
            let mut ids: Vec<_> =
                html.split(" id=\"").skip(1).map(|rest| rest.split('"').next()).collect();
            let all = ids.len();
            ids.dedup();
            assert_eq!((all, ids.len()), (2, 2), "{html}");
            assert_eq!(html.lines().filter(|line| line.trim().is_empty()).count(), 0, "ends HTML");
        }
    }
}
