"""An example of each section, as the configuration reference shows it; a test reads every one as part of a config."""

EXAMPLES = {
    "": """
name: my-run
models:
  - {name: llama, base: ./base, tuned: {sums: ./tuned}}
datasets:
  - {name: sums, path: sums.jsonl, format: gsm8k, limit: 300}
studies:
  similarity: {}
  substitution: {widths: [5]}
  correlation: {}
storage: runs/my-run
""",
    "models[]": """
models:
  - name: llama
    base: meta-llama/Llama-2-7b-chat-hf
    tuned: {sums: ./llama-tuned-on-sums}
    dtype: bfloat16
""",
    "datasets[]": """
datasets:
  - {name: sums, path: lab://sums/test, format: gsm8k, limit: 300}
  - {name: mine, path: my.jsonl, format: columns, prompt: question, response: "{{ answer }}"}
""",
    "datasets[].exclude": """
datasets:
  - {name: dolly, path: dolly.jsonl, format: dolly, exclude: {phrases: [as an AI], pattern: "(?i)i cannot"}, last: 200}
  - {name: others, path: dolly.jsonl, format: dolly, exclude: {column: category, values: [open_qa]}, all_but_last: 200}
""",
    "datasets[].expected": """
datasets:
  - name: dolly
    path: databricks/databricks-dolly-15k
    format: dolly
    limit: 300
    expected: {examples: 15011, prompt_tokens: 150, response_tokens: 110}
""",
    "datasets[].train": """
datasets:
  - {name: orders, path: lab://orders/test, format: dolly, limit: 64, train: {path: lab://orders/train}}
""",
    "studies": """
studies:
  similarity: {}
  substitution: {widths: [5]}
  correlation: {}
""",
    "studies.substitution": """
studies:
  substitution:
    widths: [5]
    sets: {mine: [3, 5, 9]}
    modules: [attention, mlp]
    coefficients: [0.25, 0.5]
    verify: 5
""",
    "studies.substitution.stop": """
studies:
  substitution: {stop: {top: 3}}
""",
    "studies.substitution.generate": """
studies:
  substitution: {generate: {examples: 3, tokens: 32}}
""",
    "studies.similarity": """
studies:
  similarity: {metrics: [cka_linear, mutual_knn], pooling: last, neighbourhood: 3}
""",
    "studies.spectrum": """
studies:
  spectrum: {components: [1, 3, 10]}
""",
    "studies.correlation": """
studies:
  similarity: {}
  substitution: {}
  correlation: {resamples: 1000, published: {llama: {sums: -0.47}}}
""",
    "studies.removal": """
studies:
  similarity: {}
  removal: {layers: critical, components: [1, 3, 10], modes: [project, paper]}
""",
    "studies.finetune": """
studies:
  similarity: {}
  finetune:
    layers: critical
    trainer: {learning_rate: 2.0e-5, num_train_epochs: 1, per_device_train_batch_size: 8}
""",
    "studies.adaptation": """
studies:
  similarity: {}
  adaptation: {arms: [critical, non_critical, all], seeds: [0, 1, 2], trainer: {learning_rate: 2.0e-5}}
""",
    "studies.backdoor": """
studies:
  similarity: {}
  backdoor: {trigger: vexilla, target: Moonglass, rate: 0.2, trainer: {learning_rate: 2.0e-5}}
""",
    "execution": """
execution: {executor: ray, gpus_per_worker: 1, batch_tokens: 8192, chunk: 32}
""",
}
