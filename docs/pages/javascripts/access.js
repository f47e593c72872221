// What the theme leaves out for those who use a keyboard or a screen reader.

// What is wider than its place scrolls in itself, so the keyboard must reach it.
const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) {
      target.tabIndex = 0;
      target.setAttribute("role", "group");
      target.setAttribute("aria-label", target.tagName === "CODE" ? "Code" : "Table");
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) target.removeAttribute(name);
    }
  }
});

function mend() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  // Buttons of a block of code are no navigation of the page.
  for (const buttons of document.querySelectorAll("nav.md-code__nav")) buttons.setAttribute("role", "none");
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code")) sizes.observe(wide);
}

new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
