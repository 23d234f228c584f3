// What Grafana does between a query's answer and a panel: frames, transformations, field options.

import {
  applyFieldOverrides,
  createTheme,
  type DataFrame,
  type Field,
  FieldConfigOptionsRegistry,
  FieldType,
  identityOverrideProcessor,
  standardTransformers,
  standardTransformersRegistry,
  toDataFrame,
  transformDataFrame,
} from "@grafana/data";
import { lastValueFrom } from "rxjs";

export const theme = createTheme({ colors: { mode: "dark" } });

export interface Answer {
  refId: string;
  legend: string;
  isInstant: boolean;
  isTable: boolean;
  series: { metric: Record<string, string>; values: [number, string][] }[];
}

standardTransformersRegistry.setInit(() =>
  ["mergeTransformer", "filterFieldsByNameTransformer", "organizeFieldsTransformer", "sortByTransformer", "limitTransformer"].map(
    (name) => {
      const transformation = (standardTransformers as any)[name];
      return { id: transformation.id, name, transformation: async () => transformation, editor: () => null } as any;
    },
  ),
);

// Standard options by their place in a field's configuration; `custom.` ones belong to a kind of panel.
const registry = new FieldConfigOptionsRegistry(() =>
  ["unit", "decimals", "min", "max", "color", "thresholds", "mappings", "noValue", "displayName"]
    .map((path) => ({ path, isCustom: false }))
    .concat(["lineWidth", "fillBelowTo", "fillOpacity", "hideFrom", "minWidth", "width", "axisSoftMax", "stacking", "spanNulls"].map((path) => ({ path, isCustom: true })))
    .map(({ path, isCustom }) => ({
      id: isCustom ? `custom.${path}` : path,
      path,
      isCustom,
      name: path,
      process: identityOverrideProcessor,
      shouldApply: () => true,
      settings: {},
    })) as any,
);

function nameOf(legend: string, metric: Record<string, string>): string {
  if (legend && legend !== "__auto") {
    return legend.replace(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? "");
  }
  const labels = Object.entries(metric).filter(([label]) => label !== "__name__");
  return labels.length ? labels.map(([label, value]) => `${label}="${value}"`).join(", ") : "Value";
}

function tableFrame(answer: Answer, isOnly: boolean): DataFrame {
  const labels = [...new Set(answer.series.flatMap((one) => Object.keys(one.metric)))].sort();
  const fields = [
    { name: "Time", type: FieldType.time, values: answer.series.map((one) => one.values.at(-1)![0] * 1000), config: {} },
    ...labels.map((label) => ({
      name: label,
      type: FieldType.string,
      values: answer.series.map((one) => one.metric[label] ?? ""),
      config: {},
    })),
    {
      name: isOnly ? "Value" : `Value #${answer.refId}`,
      type: FieldType.number,
      values: answer.series.map((one) => Number(one.values.at(-1)![1])),
      config: {},
    },
  ];
  return toDataFrame({ refId: answer.refId, fields });
}

function seriesFrames(answer: Answer, times: number[]): DataFrame[] {
  return answer.series.map((one) => {
    const name = nameOf(answer.legend, one.metric);
    const byTime = new Map(one.values.map(([time, value]) => [Math.round(time), Number(value)]));
    const at = answer.isInstant ? one.values.map(([time]) => time) : times;
    const values = at.map((time) => byTime.get(Math.round(time)) ?? null);
    return toDataFrame({
      refId: answer.refId,
      name,
      fields: [
        { name: "Time", type: FieldType.time, values: at.map((time) => time * 1000), config: {} },
        {
          name: "Value",
          type: FieldType.number,
          values: values.map((value) => (value === null || Number.isNaN(value) ? null : value)),
          labels: one.metric,
          config: { displayNameFromDS: name },
        },
      ],
    });
  });
}

export async function framesOf(panel: any, answers: Answer[], times: number[]): Promise<DataFrame[]> {
  let frames = answers
    .filter((answer) => answer.series.length)
    .flatMap((answer) =>
      answer.isTable ? [tableFrame(answer, answers.length === 1)] : seriesFrames(answer, times),
    );
  if (panel.transformations?.length && frames.length) {
    frames = await lastValueFrom(transformDataFrame(panel.transformations, frames));
  }
  return applyFieldOverrides({
    data: frames,
    fieldConfig: structuredClone(panel.fieldConfig),
    fieldConfigRegistry: registry,
    replaceVariables: (text: string) => text,
    theme,
    timeZone: "utc",
  });
}

export function valueFields(frames: DataFrame[]): Field[] {
  return frames.flatMap((frame) => frame.fields.filter((field) => field.type === FieldType.number));
}
