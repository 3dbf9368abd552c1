{{- define "modelrollout.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{- /* Name of all objects: the release's, and the chart's unless the release already says it. */ -}}
{{- define "modelrollout.fullname" -}}
{{- $name := include "modelrollout.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Name of cluster-scoped objects: releases of the same name in two namespaces must not share them. */ -}}
{{- define "modelrollout.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "modelrollout.fullname" .) -}}
{{- end -}}

{{- define "modelrollout.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "modelrollout.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "modelrollout.selectorLabels" -}}
app.kubernetes.io/name: {{ include "modelrollout.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "modelrollout.labels" -}}
{{ include "modelrollout.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "modelrollout.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Where the mounted file of a Secret's key stands in the container. */ -}}
{{- define "modelrollout.secretFile" -}}
/etc/modelrollout/secrets/{{ .secretName }}/{{ .key }}
{{- end -}}

{{- /* Secrets that servers name, each once: {"names": […]}. */ -}}
{{- define "modelrollout.secretNames" -}}
{{- $names := list -}}
{{- range .Values.servers -}}
{{- $auth := default dict .auth -}}
{{- range list $auth.bearerToken $auth.basic .ca -}}
{{- if . -}}{{- $names = append $names .secretName -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "names" ($names | uniq | sortAlpha) | toJson -}}
{{- end -}}

{{- /* The file that the operator reads (--config). */ -}}
{{- define "modelrollout.config" -}}
{{- $servers := list -}}
{{- $seen := dict -}}
{{- range .Values.servers -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "servers: the name %q is given twice; every server needs a name of its own" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- $server := dict "name" .name "url" .url "namespaceLabel" (default "namespace" .namespaceLabel) "podLabel" (default "pod" .podLabel) -}}
{{- with .delay -}}{{- $_ := set $server "delay" . -}}{{- end -}}
{{- with .headers -}}{{- $_ := set $server "headers" . -}}{{- end -}}
{{- with .ca -}}{{- $_ := set $server "caFile" (include "modelrollout.secretFile" .) -}}{{- end -}}
{{- $auth := default dict .auth -}}
{{- with $auth.bearerToken -}}
{{- $_ := set $server "bearerTokenFile" (include "modelrollout.secretFile" .) -}}
{{- end -}}
{{- with $auth.basic -}}
{{- $_ := set $server "username" .username -}}
{{- $_ := set $server "passwordFile" (include "modelrollout.secretFile" .) -}}
{{- end -}}
{{- $servers = append $servers $server -}}
{{- end -}}
{{- dict "servers" $servers "timing" .Values.timing | toYaml -}}
{{- end -}}

{{- /*
What the operator does in a namespace that it serves, and nothing more. It reads ModelRollouts and writes their status; it
owns revisions (ControllerRevisions), their Deployments and Services, and routes. It reads no Secret and no ConfigMap, unless
trackConfig or gates.secrets grants it, and makes no Job unless gates.jobs does.
*/ -}}
{{- define "modelrollout.rules" -}}
# patch: a finalizer, before an object of the user's is changed that has to be put back.
- apiGroups: [modelrollout.dev]
  resources: [modelrollouts]
  verbs: [list, watch, patch]
- apiGroups: [modelrollout.dev]
  resources: [modelrollouts/status]
  verbs: [update]
# An owner reference that blocks deletion needs this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [modelrollout.dev]
  resources: [modelrollouts/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments, controllerrevisions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
# Routes that the user keeps are patched, never made or deleted.
- apiGroups: [gateway.networking.k8s.io]
  resources: [grpcroutes]
  verbs: [list, watch, patch]
- apiGroups: [networking.istio.io]
  resources: [virtualservices]
  verbs: [list, watch, patch]
# Pools are looked at to know which pods are theirs; they are never written.
- apiGroups: [inference.networking.k8s.io]
  resources: [inferencepools]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
# An autoscaler of somebody else's that would scale our Deployments is told of, not fought.
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- if .Values.trackConfig }}
# Only the names that a template with workload.trackConfig mentions are read; RBAC can't say so.
- apiGroups: [""]
  resources: [configmaps, secrets]
  verbs: [get, list, watch]
{{- end }}
{{- if and .Values.gates.secrets (not .Values.trackConfig) }}
# Only the one that a webhook's secretRef names is read; RBAC can't say so.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- if .Values.gates.jobs }}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end -}}
