// Checks every dashboard against the types that Grafana publishes, of the oldest and of the newest version that the
// dashboards are for: the dashboard, each panel's options and field options, what all queries have.
//
//     npm install && node check.mjs [FOLDER]

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const here = dirname(fileURLToPath(import.meta.url));
const folder = process.argv[2] ?? join(here, "..", "..", "..", "deploy", "grafana", "dashboards");
const PANELS = {
  bargauge: "BarGauge",
  stat: "Stat",
  statetimeline: "StateTimeline",
  table: "Table",
  timeseries: "TimeSeries",
};

// JSON has the values of string enums, TypeScript wants their names: this is the type of the values.
const PRELUDE = `
type Json<T> = T extends string ? \`\${T}\` : T extends number | boolean | null | undefined | Function ? T
  : T extends (infer E)[] ? Json<E>[] : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
`;

function source(schema, dashboard) {
  const path = (kind, name) => `${schema}/dist/esm/raw/composable/${kind}/panelcfg/x/${name}PanelCfg_types.gen`;
  const lines = [`import type { Dashboard } from "${schema}/dist/esm/raw/dashboard/x/${DASHBOARD[schema]}";`];
  for (const [kind, name] of Object.entries(PANELS)) {
    lines.push(`import type * as ${name} from "${path(kind, name)}";`);
  }
  lines.push(`import type { DataQuery } from "${schema}";`, PRELUDE);
  lines.push(`export const dashboard: Json<Dashboard> = ${JSON.stringify(withoutExtras(dashboard), null, 1)};`);
  for (const panel of dashboard.panels.filter((panel) => panel.type !== "row")) {
    const kind = panel.type.replaceAll("-", "");
    const name = PANELS[kind];
    lines.push(`// ${panel.title}`);
    lines.push(`export const o${panel.id}: Json<Partial<${name}.Options>> = ${JSON.stringify(panel.options ?? {})};`);
    const custom = JSON.stringify(panel.fieldConfig.defaults.custom ?? {});
    if (HAS_FIELD_OPTIONS.has(kind)) {
      lines.push(`export const f${panel.id}: Json<Partial<${name}.FieldConfig>> = ${custom};`);
    }
    // What is Prometheus' own stands in none of the published types.
    const targets = panel.targets.map(({ expr, instant, range, format, legendFormat, editorMode, ...rest }) => rest);
    lines.push(`export const t${panel.id}: Json<DataQuery>[] = ${JSON.stringify(targets)};`);
  }
  return lines.join("\n");
}

const DASHBOARD = {
  "grafana-schema-11": "dashboard_types.gen",
  "grafana-schema-13": "Dashboard_types.gen",
};
const HAS_FIELD_OPTIONS = new Set(["statetimeline", "table", "timeseries"]);

// What Prometheus' annotations have beside what all annotations have, the types leave to the data source.
function withoutExtras(dashboard) {
  const list = dashboard.annotations.list.map(({ expr, titleFormat, useValueForTime, step, ...rest }) => rest);
  return { ...dashboard, annotations: { list } };
}

let failures = 0;
for (const schema of Object.keys(DASHBOARD)) {
  const files = new Map();
  for (const file of readdirSync(folder)) {
    const text = readFileSync(join(folder, file), "utf8");
    files.set(join(here, `${file}.ts`), source(schema, JSON.parse(text)));
  }
  const options = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    target: ts.ScriptTarget.ES2022,
    // Each package imports itself by the name that it is published under.
    paths: { "@grafana/schema": [join(here, "node_modules", schema)] },
  };
  const host = ts.createCompilerHost(options);
  const read = host.readFile.bind(host);
  const exists = host.fileExists.bind(host);
  const getSourceFile = host.getSourceFile.bind(host);
  host.readFile = (name) => files.get(name) ?? read(name);
  host.fileExists = (name) => files.has(name) || exists(name);
  host.getSourceFile = (name, ...rest) =>
    files.has(name) ? ts.createSourceFile(name, files.get(name), rest[0]) : getSourceFile(name, ...rest);
  const program = ts.createProgram([...files.keys()], options, host);
  const diagnostics = ts.getPreEmitDiagnostics(program);
  failures += diagnostics.length;
  console.log(`${schema}: ${files.size} dashboards, ${diagnostics.length} errors`);
  for (const one of diagnostics) {
    const place = one.file?.getLineAndCharacterOfPosition(one.start);
    const text = ts.flattenDiagnosticMessageText(one.messageText, "\n");
    const line = place ? one.file.text.split("\n")[place.line].slice(0, 160) : "";
    console.log(`${one.file?.fileName ?? ""}:${(place?.line ?? 0) + 1}: ${text}\n  ${line}`);
  }
}
process.exit(failures ? 1 : 0);
