"use strict";
// What all pages have: the theme, and the login's fragment. It runs before the page is drawn, so that none flashes in the wrong theme.
(() => {
  const root = document.documentElement, themes = ["auto", "light", "dark"];
  let theme = localStorage.getItem("theme");
  if (!themes.includes(theme)) theme = "auto";
  const set = () => {
    if (theme === "auto") root.removeAttribute("data-theme"); else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = "◐ " + theme;
  };
  set();
  document.addEventListener("DOMContentLoaded", () => {
    set();
    document.getElementById("theme")?.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      localStorage.setItem("theme", theme);
      set();
    });
    // A server never sees the fragment, which names a step and its lines: the form takes it along.
    const login = document.getElementById("login");
    if (login && location.hash) login.elements.next.value += location.hash;
  });
})();
