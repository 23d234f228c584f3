// The kinds of panels of our dashboards, drawn with Grafana's own components.

import {
  dateTime,
  type DataFrame,
  getDisplayProcessor,
  getFieldDisplayName,
  getFieldDisplayValues,
  type TimeRange,
} from "@grafana/data";
import { BarGaugeDisplayMode, BigValueColorMode, BigValueGraphMode, BigValueTextMode, VizOrientation } from "@grafana/schema";
import { BarGauge, BigValue, Table, TimeSeries, VizRepeater } from "@grafana/ui";
import React from "react";

import { theme } from "./frames";

export interface Size {
  width: number;
  height: number;
}

interface Props extends Size {
  panel: any;
  frames: DataFrame[];
  range: { from: number; to: number };
}

export function Panel(props: Props) {
  const { panel, frames } = props;
  const isEmpty = !frames.some((frame) => frame.length);
  if (isEmpty) {
    return <Nothing {...props} text={panel.fieldConfig.defaults.noValue ?? "No data"} />;
  }
  switch (panel.type) {
    case "timeseries":
      return <Lines {...props} />;
    case "stat":
      return <Numbers {...props} />;
    case "bargauge":
      return <Bars {...props} />;
    case "table":
      return <Table data={frames[0]} width={props.width} height={props.height} cellHeight={"sm" as any} />;
    case "state-timeline":
      return <Timeline {...props} />;
    default:
      throw new Error(`${panel.type}: no such panel here`);
  }
}

function Nothing({ width, height, text }: Size & { text: string }) {
  const style = { width, height, display: "flex", alignItems: "center", justifyContent: "center" };
  return <div style={{ ...style, color: theme.colors.text.secondary }}>{text}</div>;
}

function Lines({ panel, frames, width, height, range }: Props) {
  const timeRange: TimeRange = {
    from: dateTime(range.from * 1000),
    to: dateTime(range.to * 1000),
    raw: { from: "now-1h", to: "now" },
  };
  return (
    <TimeSeries
      frames={frames}
      timeRange={timeRange}
      timeZone="utc"
      width={width}
      height={height}
      legend={panel.options.legend}
      options={panel.options}
    />
  );
}

function displayValues({ panel, frames }: Props) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text: string) => text,
    theme,
    data: frames,
    sparkline: panel.options.graphMode === "area",
    timeZone: "utc",
  });
}

function Numbers(props: Props) {
  const { panel, width, height } = props;
  const values = displayValues(props);
  return (
    <VizRepeater
      source={{} as any}
      getValues={() => values}
      renderCounter={0}
      width={width}
      height={height}
      orientation={VizOrientation.Auto}
      renderValue={({ value, width, height }: any) => (
        <BigValue
          value={value.display}
          sparkline={panel.options.graphMode === "area" ? value.sparkline : undefined}
          count={values.length}
          colorMode={panel.options.colorMode as BigValueColorMode}
          graphMode={panel.options.graphMode as BigValueGraphMode}
          textMode={panel.options.textMode as BigValueTextMode}
          width={width}
          height={height}
          theme={theme as any}
        />
      )}
    />
  );
}

function Bars(props: Props) {
  const { panel, width, height } = props;
  const values = displayValues(props);
  return (
    <VizRepeater
      source={{} as any}
      getValues={() => values}
      renderCounter={0}
      width={width}
      height={height}
      minVizHeight={16}
      orientation={VizOrientation.Horizontal}
      itemSpacing={8}
      renderValue={({ value, width, height }: any) => (
        <BarGauge
          value={value.display}
          field={value.field}
          display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          width={width}
          height={Math.min(height, 60)}
          orientation={VizOrientation.Horizontal}
          displayMode={panel.options.displayMode as BarGaugeDisplayMode}
          namePlacement={panel.options.namePlacement}
          theme={theme as any}
          itemSpacing={8}
          lcdCellWidth={12}
        />
      )}
    />
  );
}

// Grafana keeps this panel in its application: a row of coloured boxes for each series stands for it here.
function Timeline({ frames, width, height, range }: Props) {
  const nameWidth = Math.round(width * 0.36);
  const span = range.to - range.from;
  const rowHeight = Math.min(34, (height - 20) / frames.length);
  const x = (time: number) => nameWidth + ((time / 1000 - range.from) / span) * (width - nameWidth);
  const rows = frames.map((frame, row) => {
    const [time, value] = frame.fields;
    const display = value.display ?? getDisplayProcessor({ field: value, theme });
    const boxes = [];
    for (let i = 0, start = 0; i <= frame.length; i++) {
      if (i < frame.length && value.values[i] === value.values[start]) continue;
      const shown = value.values[start];
      const end = time.values[Math.min(i, frame.length - 1)];
      if (shown !== null && shown !== undefined) {
        const left = x(time.values[start]);
        boxes.push(
          <rect key={i} x={left} width={Math.max(1, x(end) - left)} y={row * rowHeight + rowHeight * 0.1}
            height={rowHeight * 0.8} fill={display(shown).color} fillOpacity={0.8} />,
        );
      }
      start = i;
    }
    const name = getFieldDisplayName(value, frame, frames);
    return (
      <g key={row}>
        <text x={nameWidth - 8} y={row * rowHeight + rowHeight * 0.62} textAnchor="end" fontSize={12}
          fill={theme.colors.text.primary}>{name}</text>
        {boxes}
      </g>
    );
  });
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => (
    <text key={share} x={nameWidth + share * (width - nameWidth)} y={height - 4} fontSize={12}
      textAnchor={share === 1 ? "end" : share === 0 ? "start" : "middle"} fill={theme.colors.text.secondary}>
      {new Date((range.from + share * span) * 1000).toISOString().slice(11, 16)}
    </text>
  ));
  return <svg width={width} height={height}>{rows}{ticks}</svg>;
}
