{{- define "iomesh.image" -}}
{{ .context.Values.image.registry }}/{{ .name }}:{{ .context.Values.image.tag | default .context.Chart.AppVersion }}
{{- end -}}

{{- define "iomesh.labels" -}}
app.kubernetes.io/name: iomesh
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "iomesh.selector" -}}
app.kubernetes.io/name: iomesh
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "iomesh.secret" -}}
{{ .Values.clusterSecret | default "iomesh-cluster" }}
{{- end -}}

{{- define "iomesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}
