// Copies the short link, and keeps its clicks up to date; the page works without.
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const field = document.getElementById(button.dataset.copy);
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      document.execCommand("copy");
    }
    document.getElementById("copied").textContent = "Copied.";
  });
}

const every = 3000;

async function refresh() {
  const old = document.getElementById("clicks");
  if (!document.hidden && !old.contains(document.activeElement)) {
    try {
      const answer = await fetch(location.pathname, { headers: { accept: "text/html" } });
      if (answer.status === 404) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("clicks");
      if (answer.ok && fresh) {
        const open = [...old.querySelectorAll("details")].map((each) => each.open);
        fresh.querySelectorAll("details").forEach((each, at) => { each.open = open[at] ?? false; });
        old.replaceWith(fresh);
      }
    } catch {
      // Not reachable now: the next time.
    }
  }
  setTimeout(refresh, every);
}
if (document.getElementById("clicks")) setTimeout(refresh, every);
