// Draws each dashboard with Grafana's own components, from answers of a real Prometheus.
//
//     python -m tools.watch --answers build/answers.json      (a few minutes)
//     node draw.mjs ../../build/answers.json ../../docs/dashboards
//
// CHROMIUM names the browser; it is looked for on the usual paths otherwise.

import { build } from "esbuild";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const [answersPath, out] = process.argv.slice(2);
if (!out) {
  console.error("usage: node draw.mjs ANSWERS FOLDER");
  process.exit(2);
}
const here = dirname(fileURLToPath(import.meta.url));
const dashboards = join(here, "..", "..", "deploy", "grafana", "dashboards");
const browserPath = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  (path) => path && existsSync(path),
);
if (!browserPath) {
  console.error("CHROMIUM: expected the path of a Chromium, found none; install one (Debian: chromium)");
  process.exit(1);
}

// Their ES modules import old packages in a way that only some bundlers understand.
const commonJs = {
  name: "common-js",
  setup: ({ onResolve }) =>
    onResolve({ filter: /^@grafana\/(data|i18n|schema|ui)$/ }, ({ path }) => ({
      path: join(here, "node_modules", path, "dist", "cjs", "index.cjs"),
    })),
};

const bundle = await build({
  entryPoints: [join(here, "page.tsx")],
  bundle: true,
  write: false,
  outdir: "out",
  format: "iife",
  jsx: "automatic",
  plugins: [commonJs],
  define: { "process.env.NODE_ENV": '"production"', global: "window" },
  loader: { ".svg": "dataurl", ".png": "dataurl", ".woff2": "dataurl", ".ttf": "dataurl" },
  logLevel: "error",
});
const script = bundle.outputFiles.find((file) => file.path.endsWith(".js")).text;
const style = bundle.outputFiles.find((file) => file.path.endsWith(".css"))?.text ?? "";
const answers = JSON.parse(readFileSync(answersPath, "utf8"));
mkdirSync(out, { recursive: true });

const browser = await chromium.launch({ executablePath: browserPath, args: ["--no-sandbox", "--disable-gpu"] });
for (const [name, byPanel] of Object.entries(answers.dashboards)) {
  const page = await browser.newPage({ viewport: { width: 1600, height: 1200 } });
  page.on("pageerror", (error) => console.error(`${name}: ${error.stack}`));
  page.on("console", (message) => message.type() === "error" && console.error(`${name}: ${message.text()}`));
  // Grafana's components keep things in the browser's storage, which only a page with an address has.
  const html = `<html><head><style>${style}</style></head><body><div id="root"></div></body></html>`;
  await page.route("**/*", (route) => route.fulfill({ contentType: "text/html", body: html }));
  await page.goto("http://dashboards.invalid/");
  await page.addScriptTag({ content: script });
  const dashboard = JSON.parse(readFileSync(join(dashboards, `${name}.json`), "utf8"));
  await page.evaluate(([...given]) => window.draw(...given), [dashboard, byPanel, answers.range, answers.values]);
  await page.waitForTimeout(2000);
  await page.locator("#board").screenshot({ path: join(out, `${name}.png`) });
  await page.close();
  console.log(join(out, `${name}.png`));
}
await browser.close();
