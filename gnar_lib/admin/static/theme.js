// Sets the theme that was chosen, before the page is drawn; a plain script in <head>, so that nothing flashes.
"use strict";

{
  const THEMES = ["system", "light", "dark"];

  function chosen() {
    try {
      const theme = localStorage.getItem("gnar-theme");
      return THEMES.includes(theme) ? theme : "system";
    } catch {
      return "system"; // storage is forbidden
    }
  }

  function apply(theme) {
    document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  }

  function next() {
    const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    try {
      localStorage.setItem("gnar-theme", theme);
    } catch {
      // the choice lasts until the page is left
    }
    apply(theme);
  }

  apply(chosen());
  document.addEventListener("DOMContentLoaded", () => {
    apply(chosen());
    document.getElementById("theme").addEventListener("click", next);
  });
}
