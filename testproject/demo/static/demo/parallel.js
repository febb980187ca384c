const form = document.getElementById("run");
const button = document.getElementById("send");
const progress = document.getElementById("progress");
const panels = [...document.querySelectorAll(".result")];

async function call(url, method = "GET") {
  const headers = { "X-CSRFToken": form.elements.csrfmiddlewaretoken.value };
  const response = await fetch(url, { method, headers });
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return response.json();
}

function show(panel, state, verdict) {
  panel.dataset.state = state;
  panel.querySelector(".verdict").textContent = verdict;
}

function light(panel, survived) {
  for (const lamp of panel.querySelectorAll(".lamp")) {
    const slot = Number(lamp.dataset.slot);
    lamp.dataset.survived = survived.includes(slot);
    lamp.querySelector(".outcome").textContent = survived.includes(slot) ? "survived" : "lost";
  }
}

function reset(panel) {
  delete panel.dataset.survived;
  for (const lamp of panel.querySelectorAll(".lamp")) {
    delete lamp.dataset.survived;
    lamp.querySelector(".outcome").textContent = "not sent";
  }
  show(panel, "idle", "Waiting for its turn");
}

async function run(panel) {
  const { url } = panel.dataset;
  show(panel, "running", "Eight requests under way …");
  const { run, requests } = await call(url, "POST");
  const slots = [...Array(requests).keys()];
  await Promise.all(slots.map((slot) => call(`${url}${run}/${slot}/`, "POST")));
  const { survived } = await call(url);
  light(panel, survived);
  panel.dataset.survived = survived.length;
  show(panel, "done", `${survived.length} of ${requests} survived`);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  form.dataset.state = "running";
  panels.forEach(reset);
  let failed = 0;
  for (const [index, panel] of panels.entries()) {
    progress.textContent = `Run ${index + 1} of ${panels.length} …`;
    try {
      await run(panel);
    } catch (error) {
      failed += 1;
      show(panel, "failed", `This run failed: ${error.message}`);
    }
  }
  progress.textContent = failed ? `${failed} of ${panels.length} runs failed.` : "All four runs are done.";
  form.dataset.state = failed ? "failed" : "done";
  button.disabled = false;
});
