{{- define "sutdol.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "sutdol.labels" -}}
app.kubernetes.io/name: sutdol
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that select the pods of one component: dict "root" $ "component" "serve". */}}
{{- define "sutdol.selector" -}}
app.kubernetes.io/name: sutdol
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "sutdol.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{- define "sutdol.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sutdol.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "sutdol.env" -}}
env:
  - {name: SUTDOL_HOME, value: /var/lib/sutdol}
  {{- range .Values.secret.keys }}
  - {name: SUTDOL_{{ upper . }}_FILE, value: /run/secrets/sutdol/{{ . }}}
  {{- end }}
  {{- range $name, $value := .Values.settings }}
  - {name: {{ $name }}, value: {{ $value | toString | quote }}}
  {{- end }}
{{- end }}

{{- define "sutdol.mounts" -}}
volumeMounts:
  - {name: home, mountPath: /var/lib/sutdol}
  - {name: tmp, mountPath: /tmp}
  - {name: secrets, mountPath: /run/secrets/sutdol, readOnly: true}
{{- end }}

{{/* dict "root" $ "size" "2Gi" */}}
{{- define "sutdol.volumes" -}}
volumes:
  - name: home
    emptyDir: {sizeLimit: {{ .size }}}
  - name: tmp
    emptyDir: {sizeLimit: 1Gi}
  - name: secrets
    secret:
      secretName: {{ .root.Values.secret.name }}
      defaultMode: 0440
      items:
        {{- range .root.Values.secret.keys }}
        - {key: {{ . }}, path: {{ . }}}
        {{- end }}
{{- end }}
