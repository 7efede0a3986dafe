<?php

declare(strict_types=1);

namespace Chatws;

/**
 * A directory of lines that could not be delivered. README.md defines its format, which `chatws push --spool` shares.
 *
 * @internal
 */
final class Spool
{
    private const LOCK = '.lock';
    private const REJECTED = 'refused';
    private const ADDRESS = '.address';
    /** Seconds after which a temporary file is deleted: its writer was killed. Writing one takes milliseconds. */
    private const STALE_AFTER = 3600;
    /** Bytes of a file. The server rejects lines above `max_line_size`, 1 MiB by default. */
    private const MAX_FILE = 4 * 1024 * 1024;

    /** Why write() has not stored all lines. */
    public string $problem = '';
    /** @var resource|null */
    private $lock = null;
    /** Microseconds since 1970 in the name of the last file. */
    private int $lastTimestamp = 0;

    public function __construct(private readonly string $directory, private readonly int $maxFiles)
    {
    }

    /**
     * Stores lines. They survive the end of this process and a restart of the server. There is no fsync, because it
     * would block the request, so a power failure may lose the last lines.
     *
     * @param list<Line> $lines
     * @return int how many were stored; $problem says why the others were not
     */
    public function write(array $lines): int
    {
        return ErrorSuppressor::call(function () use ($lines): int {
            if (!is_dir($this->directory) && !mkdir($this->directory, 0770, true) && !is_dir($this->directory)) {
                $this->problem = "cannot create {$this->directory}: " . ErrorSuppressor::$warning;

                return 0;
            }
            $capacity = $this->maxFiles - \count($this->names());
            $stored = 0;
            foreach ($lines as $line) {
                if ($stored >= $capacity) {
                    $this->problem = "the spool is full: it holds {$this->maxFiles} files (spool_max_files)";
                    break;
                }
                if (!$this->writeFile($line)) {
                    $this->problem = ErrorSuppressor::$warning;
                    break;
                }
                ++$stored;
            }

            return $stored;
        });
    }

    /**
     * Locks the spool and reads the oldest lines. The lock is held until release() or the end of the process.
     *
     * @return array<string, Line> file name => line; empty if the spool is empty or another process holds the lock
     */
    public function claim(int $maxLines, int $maxBytes, Log $log): array
    {
        return ErrorSuppressor::call(function () use ($maxLines, $maxBytes, $log): array {
            if ($this->names() === [] || !$this->lock()) {
                return [];
            }
            $this->deleteStaleFiles();
            $lines = [];
            $size = 0;
            // List the directory again: the previous holder of the lock may have sent some of the files.
            foreach ($this->names() as $name) {
                $path = "{$this->directory}/{$name}";
                // Reading a FIFO would block, and reading a huge file would exceed the memory limit.
                if (is_link($path) || !is_file($path) || filesize($path) > self::MAX_FILE) {
                    $log->warning("the spool file {$name} is invalid: moved to " . self::REJECTED . '/');
                    $this->reject($name);
                    continue;
                }
                $text = file_get_contents($path, false, null, 0, self::MAX_FILE);
                if ($text === false) {
                    $log->warning("cannot read the spool file {$name}: " . ErrorSuppressor::$warning);
                    continue;
                }
                $line = Line::parse(rtrim($text, "\r\n"));
                if ($line === null) {
                    $log->warning("the spool file {$name} is invalid: moved to " . self::REJECTED . '/');
                    $this->reject($name);
                    continue;
                }
                $size += \strlen($line->json);
                if ($lines !== [] && $size > $maxBytes) {
                    break;
                }
                $lines[$name] = $line;
                if (\count($lines) >= $maxLines) {
                    break;
                }
            }

            return $lines;
        });
    }

    /** Deletes a delivered line. */
    public function remove(string $name): void
    {
        ErrorSuppressor::call(fn (): bool => unlink("{$this->directory}/{$name}"));
    }

    /** Moves a line that the server will never accept to `refused/`, for inspection. */
    public function reject(string $name): void
    {
        ErrorSuppressor::call(function () use ($name): void {
            $target = "{$this->directory}/" . self::REJECTED;
            if (!is_dir($target)) {
                mkdir($target, 0770);
            }
            rename("{$this->directory}/{$name}", "{$target}/{$name}");
        });
    }

    /** Releases the lock. */
    public function release(): void
    {
        if ($this->lock !== null) {
            flock($this->lock, \LOCK_UN); // closing is not enough: a forked child may hold the file open too
            fclose($this->lock);
            $this->lock = null;
        }
    }

    /** Returns the number of lines in the spool. */
    public function count(): int
    {
        return ErrorSuppressor::call(fn (): int => \count($this->names()));
    }

    /** Returns the address that worked last, in any process, or null if it is unknown. */
    public function rememberedAddress(): ?string
    {
        $path = "{$this->directory}/" . self::ADDRESS;

        return ErrorSuppressor::call(static fn (): ?string => is_file($path) ? file_get_contents($path) ?: null : null);
    }

    /** Stores the address that worked. Does nothing if the directory is not writable. */
    public function rememberAddress(string $address): void
    {
        ErrorSuppressor::call(function () use ($address): void {
            $temporary = "{$this->directory}/." . bin2hex(random_bytes(6)) . '.tmp';
            if (is_dir($this->directory) || mkdir($this->directory, 0770, true)) {
                file_put_contents($temporary, $address) && rename($temporary, "{$this->directory}/" . self::ADDRESS);
            }
        });
    }

    /** @return list<string> the oldest first */
    private function names(): array
    {
        if (!is_dir($this->directory)) {
            return [];
        }

        return array_values(array_filter(
            scandir($this->directory, \SCANDIR_SORT_ASCENDING) ?: [],
            static fn (string $name): bool => $name[0] !== '.' && str_ends_with($name, '.json'),
        ));
    }

    private function lock(): bool
    {
        $path = "{$this->directory}/" . self::LOCK;
        $isNew = !file_exists($path);
        if (!$isNew && !is_file($path)) {
            return false; // fopen() would block on a FIFO
        }
        $file = fopen($path, 'c');
        if ($file === false) {
            return false;
        }
        if ($isNew) {
            self::setMode($path);
        }
        if (!flock($file, \LOCK_EX | \LOCK_NB)) {
            fclose($file);

            return false;
        }
        $this->lock = $file;

        return true;
    }

    /** Makes the file readable for the owner and the group only: it holds messages. php.ini may disable chmod(). */
    private static function setMode(string $path): void
    {
        if (\function_exists('chmod')) {
            chmod($path, 0660);
        }
    }

    /** Deletes the temporary files of processes that were killed. */
    private function deleteStaleFiles(): void
    {
        foreach (glob("{$this->directory}/.*.tmp") ?: [] as $path) {
            if (time() - (int) filemtime($path) > self::STALE_AFTER) {
                unlink($path);
            }
        }
    }

    private function writeFile(Line $line): bool
    {
        // Within a process the order of the names is the order of writing, even if the clock is set back.
        $this->lastTimestamp = max($this->lastTimestamp + 1, (int) (microtime(true) * 1e6));
        $name = sprintf('%016d-%s', $this->lastTimestamp, bin2hex(random_bytes(6)));
        $temporary = "{$this->directory}/.{$name}.tmp";
        $file = fopen($temporary, 'x');
        if ($file === false) {
            return false;
        }
        self::setMode($temporary);
        $written = fwrite($file, "{$line->json}\n") === \strlen($line->json) + 1;
        if (fclose($file) && $written && rename($temporary, "{$this->directory}/{$name}.json")) {
            return true;
        }
        $warning = ErrorSuppressor::$warning;
        unlink($temporary);
        ErrorSuppressor::$warning = $warning;

        return false;
    }
}
