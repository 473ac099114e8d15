"""The same sentence encoder behind LitServe, with its own batching: run by LitServe's interpreter.

python litserve_app.py FOLDER PORT THREADS BATCH WORKERS
"""

import base64
import sys
from pathlib import Path

import litserve as ls
import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Encoder(ls.LitAPI):
    """One text per request; up to BATCH of them are computed together."""

    folder = Path(sys.argv[1])
    threads = int(sys.argv[3])

    def setup(self, device):  # noqa: ARG002 - LitServe's
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(str(self.folder / "model.onnx"), options)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.enable_padding()

    def decode_request(self, request):
        return request["input"]

    def predict(self, texts):
        if isinstance(texts, str):  # with batches of one LitServe passes the text itself
            return self.compute([texts])[0]
        return self.compute(texts)

    def compute(self, texts):
        encoded = self.tokenizer.encode_batch(list(texts))
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        feed = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        (hidden,) = self.session.run(None, feed)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def encode_response(self, vector):
        data = np.asarray(vector, np.float32).tobytes()
        return {"data": [{"index": 0, "embedding": base64.b64encode(data).decode()}]}


if __name__ == "__main__":
    batch = int(sys.argv[4])
    api = Encoder(max_batch_size=batch, batch_timeout=0.002 if batch > 1 else 0.0)
    ls.LitServer(api, accelerator="cpu", workers_per_device=int(sys.argv[5])).run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error"
    )
