// One dashboard as Grafana lays it out, from the answers that `python -m tools.watch --answers` wrote.

import { type DataFrame, EventBusSrv, ThemeContext } from "@grafana/data";
import { initPluginTranslations } from "@grafana/i18n";
import { GlobalStyles, PanelChrome, PanelContextProvider } from "@grafana/ui";
import React from "react";
import { createRoot } from "react-dom/client";

import { type Answer, framesOf, theme } from "./frames";
import { Panel } from "./panels";

const WIDTH = 1600;
const GAP = 8;
const CELL = 30;

interface Drawn {
  panel: any;
  frames: DataFrame[];
}

function Board({ title, drawn, range }: { title: string; drawn: Drawn[]; range: any }) {
  const column = (WIDTH - GAP) / 24;
  const bottom = Math.max(...drawn.map(({ panel }) => panel.gridPos.y + panel.gridPos.h));
  return (
    <div id="board" style={{ position: "relative", width: WIDTH, height: bottom * (CELL + GAP) + 48 }}>
      <h1 style={{ margin: 0, padding: "12px 16px", fontSize: 20, height: 48 }}>{title}</h1>
      {drawn.map(({ panel, frames }) => {
        const { x, y, w, h } = panel.gridPos;
        const place = { position: "absolute" as const, left: GAP + x * column, top: 48 + y * (CELL + GAP) };
        const width = Math.floor(w * column - GAP);
        const height = h * (CELL + GAP) - GAP;
        if (panel.type === "row") {
          return <div key={panel.id} style={{ ...place, fontWeight: 500, paddingTop: 6 }}>{panel.title}</div>;
        }
        return (
          <div key={panel.id} style={place}>
            <PanelChrome title={panel.title} width={width} height={height} description="">
              {(innerWidth, innerHeight) => (
                <Panel panel={panel} frames={frames} width={innerWidth} height={innerHeight} range={range} />
              )}
            </PanelChrome>
          </div>
        );
      })}
    </div>
  );
}

declare global {
  interface Window {
    draw: (dashboard: any, answers: Record<string, Answer[]>, range: any, values: any) => Promise<void>;
  }
}

window.draw = async (dashboard, answers, range, values) => {
  await initPluginTranslations("policypatch-dashboards").catch(() => undefined);
  const fill = (text: string) => text.replace(/\$(\w+)/g, (whole, name) => values[name] ?? whole);
  const times: number[] = [];
  for (let time = range.from; time <= range.to; time += range.step) times.push(Math.round(time));
  const drawn = await Promise.all(
    dashboard.panels.map(async (panel: any) => ({
      panel: { ...panel, title: fill(panel.title) },
      frames: panel.type === "row" ? [] : await framesOf(panel, answers[panel.id] ?? [], times),
    })),
  );
  const context = { eventBus: new EventBusSrv() };
  createRoot(document.getElementById("root")!).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PanelContextProvider value={{ eventsScope: "board", ...context } as any}>
        <Board title={fill(dashboard.title)} drawn={drawn} range={range} />
      </PanelContextProvider>
    </ThemeContext.Provider>,
  );
};
