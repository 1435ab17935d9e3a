{{- define "malha.image" -}}
{{ .Values.image.name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "malha.labels" -}}
app.kubernetes.io/part-of: malha
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "malha.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- end }}

{{- /* What the image is for; nodes of a user's choice among those. */}}
{{- define "malha.nodeSelector" -}}
{{ toYaml (merge (dict "kubernetes.io/os" "linux" "kubernetes.io/arch" "amd64") .) }}
{{- end }}

{{- define "malha.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
