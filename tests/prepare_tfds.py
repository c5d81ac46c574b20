"""Let tensorflow-datasets prepare MNIST from the official files: the oracle of test_tfds.py.

Run by an interpreter that has tensorflow-cpu, tensorflow-datasets and importlib_resources:
`python prepare_tfds.py FILES DATA_DIR FILE_FORMAT SHARDS`
"""

import sys

import tensorflow_datasets as tfds


def main(files: str, data_dir: str, file_format: str, shards: str) -> None:
    """Prepare into `data_dir` from the four .gz in `files`, in that format, so many shards each."""
    config = tfds.download.DownloadConfig(
        manual_dir=files, try_download_gcs=False, num_shards=int(shards)
    )
    builder = tfds.builder("mnist", data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(download_dir=f"{data_dir}/downloads", download_config=config)


if __name__ == "__main__":
    main(*sys.argv[1:])
