{{- define "policypatch.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "policypatch.selector" -}}
app.kubernetes.io/name: policypatch
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "policypatch.labels" -}}
{{ include "policypatch.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "policypatch.workload" -}}
{{- if .Values.storage.persistent }}StatefulSet{{ else }}Deployment{{ end -}}
{{- end -}}

{{- define "policypatch.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* As restricted as pods can be. */}}
{{- define "policypatch.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "policypatch.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
